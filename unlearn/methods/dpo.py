"""DPO (Rafailov et al., 2023) for unlearning: texts such as "I don't know." are preferred to the forget texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from unlearn.arguments import check_number
from unlearn.methods.likelihood import LikelihoodMethod

if TYPE_CHECKING:
    from torch import Tensor

    from unlearn.methods.inputs import Pair


@dataclass(frozen=True)
class DPO(LikelihoodMethod):
    """-(2 / beta) log sigmoid(beta (log r(x^p) - log r(x^f))), r = p_updated / p_reference, mean over samples.

    x^p are the preferred texts, one for each forget text; p is the likelihood of all of a sample's tokens.

    Args:
        beta: the inverse temperature, above 0.
        retain, published, rna: as for every `LikelihoodMethod`.
    """

    needs_preferred: ClassVar[bool] = True

    beta: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("beta", self.beta, above=0)

    def forget(self, likelihoods: Pair) -> Tensor:
        """The equation above: scalar."""
        from torch.nn.functional import logsigmoid

        updated, reference = likelihoods.updated, likelihoods.reference
        preferred_B = updated("preferred").sum_B
        expected_B = preferred_B if self.published else reference("preferred").sum_B
        log_ratio_B = updated("forget").sum_B - reference("forget").sum_B
        return -2 / self.beta * logsigmoid(self.beta * (preferred_B - expected_B - log_ratio_B)).mean()
