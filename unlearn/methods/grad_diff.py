"""Gradient difference (Liu et al., 2022): gradient ascent on the forget texts, with a retain loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from unlearn.methods.likelihood import LikelihoodMethod

if TYPE_CHECKING:
    from torch import Tensor

    from unlearn.methods.inputs import Pair


@dataclass(frozen=True)
class GradDiff(LikelihoodMethod):
    """mean log p_updated(x^f) over a sample's tokens, then over samples. It has no lower bound.

    Args:
        retain, published, rna: as for every `LikelihoodMethod`.
    """

    def forget(self, likelihoods: Pair) -> Tensor:
        """The negative of the usual loss on forget texts: scalar."""
        return likelihoods.updated("forget").mean_B.mean()
