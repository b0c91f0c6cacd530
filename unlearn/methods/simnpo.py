"""SimNPO (Fan et al., 2024): NPO without a reference, on likelihoods normalised by length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from unlearn.arguments import check_number
from unlearn.methods.likelihood import LikelihoodMethod

if TYPE_CHECKING:
    from torch import Tensor

    from unlearn.methods.inputs import Pair


@dataclass(frozen=True)
class SimNPO(LikelihoodMethod):
    """-(2 / beta) log sigmoid(-beta mean log p_updated(x^f) - gamma), mean over samples.

    The inner mean is over a sample's tokens.

    Args:
        beta: the inverse temperature, above 0.
        gamma: the margin, at least 0.
        retain, published, rna: as for every `LikelihoodMethod`.
    """

    beta: float
    gamma: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("beta", self.beta, above=0)
        check_number("gamma", self.gamma, at_least=0)

    def forget(self, likelihoods: Pair) -> Tensor:
        """The equation above: scalar."""
        from torch.nn.functional import logsigmoid

        mean_B = likelihoods.updated("forget").mean_B
        return -2 / self.beta * logsigmoid(-self.beta * mean_B - self.gamma).mean()
