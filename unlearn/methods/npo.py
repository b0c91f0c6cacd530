"""NPO, negative preference optimisation (Zhang et al., 2024): forget texts become less likely than to the reference."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from unlearn.methods.likelihood import LikelihoodMethod, Pair


class NPO(LikelihoodMethod):
    """-(2 / beta) log sigmoid(-beta log(p_updated(x^f) / p_reference(x^f))), mean over samples.

    p is the likelihood of all of a sample's tokens.
    """

    def __init__(self, beta: float, retain: str, **published: bool | str) -> None:
        super().__init__(retain, **published)  # type: ignore[arg-type]
        self.beta = beta

    def forget(self, likelihoods: Pair) -> Tensor:
        """The equation above: scalar."""
        log_ratio_B = likelihoods.updated("forget").sum_B - likelihoods.reference("forget").sum_B
        return -2 / self.beta * logsigmoid(-self.beta * log_ratio_B).mean()
