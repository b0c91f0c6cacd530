"""SimNPO (Fan et al., 2024): NPO without a reference, on likelihoods normalised by length."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from unlearn.methods.likelihood import LikelihoodMethod, Pair


class SimNPO(LikelihoodMethod):
    """-(2 / beta) log sigmoid(-beta mean log p_updated(x^f) - gamma), mean over samples.

    The inner mean is over a sample's tokens.
    """

    def __init__(self, beta: float, gamma: float, retain: str, **published: bool | str) -> None:
        super().__init__(retain, **published)  # type: ignore[arg-type]
        self.beta, self.gamma = beta, gamma

    def forget(self, likelihoods: Pair) -> Tensor:
        """The equation above: scalar."""
        mean_B = likelihoods.updated("forget").mean_B
        return -2 / self.beta * logsigmoid(-self.beta * mean_B - self.gamma).mean()
