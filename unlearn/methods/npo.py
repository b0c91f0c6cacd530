"""NPO, negative preference optimisation (Zhang et al., 2024): forget texts become less likely than to the reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from unlearn.arguments import check_number
from unlearn.methods.likelihood import LikelihoodMethod

if TYPE_CHECKING:
    from torch import Tensor

    from unlearn.methods.inputs import Pair


@dataclass(frozen=True)
class NPO(LikelihoodMethod):
    """-(2 / beta) log sigmoid(-beta log(p_updated(x^f) / p_reference(x^f))), mean over samples.

    p is the likelihood of all of a sample's tokens.

    Args:
        beta: the inverse temperature, above 0. The smaller, the more alike to gradient ascent.
        retain, published, rna: as for every `LikelihoodMethod`.
    """

    beta: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("beta", self.beta, above=0)

    def forget(self, likelihoods: Pair) -> Tensor:
        """The equation above: scalar."""
        from torch.nn.functional import logsigmoid

        log_ratio_B = likelihoods.updated("forget").sum_B - likelihoods.reference("forget").sum_B
        return -2 / self.beta * logsigmoid(-self.beta * log_ratio_B).mean()
