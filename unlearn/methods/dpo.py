"""DPO (Rafailov et al., 2023) for unlearning: texts such as "I don't know." are preferred to the forget texts."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from unlearn.methods.likelihood import LikelihoodMethod, Pair


class DPO(LikelihoodMethod):
    """-(2 / beta) log sigmoid(beta (log r(x^p) - log r(x^f))), r = p_updated / p_reference, mean over samples.

    x^p are the preferred texts, one for each forget text; p is the likelihood of all of a sample's tokens.
    `reference_ratio` "updated" takes the updated model's p(x^p) for the reference's (the published code): x^p cancels.
    """

    def __init__(self, beta: float, retain: str, reference_ratio: str = "reference", **published: bool | str) -> None:
        super().__init__(retain, **published)  # type: ignore[arg-type]
        assert reference_ratio in ("reference", "updated"), reference_ratio
        self.beta, self.reference_ratio = beta, reference_ratio

    def forget(self, likelihoods: Pair) -> Tensor:
        """The equation above: scalar."""
        updated, reference = likelihoods.updated, likelihoods.reference
        preferred_B = updated("preferred").sum_B
        expected_B = preferred_B if self.reference_ratio == "updated" else reference("preferred").sum_B
        log_ratio_B = updated("forget").sum_B - reference("forget").sum_B
        return -2 / self.beta * logsigmoid(self.beta * (preferred_B - expected_B - log_ratio_B)).mean()
