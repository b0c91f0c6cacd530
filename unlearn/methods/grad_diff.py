"""Gradient difference (Liu et al., 2022): gradient ascent on the forget texts, with a retain loss."""

from __future__ import annotations

from torch import Tensor

from unlearn.methods.likelihood import LikelihoodMethod, Pair


class GradDiff(LikelihoodMethod):
    """mean log p_updated(x^f) over a sample's tokens, then over samples. It has no lower bound."""

    def forget(self, likelihoods: Pair) -> Tensor:
        """The negative of the usual loss on forget texts: scalar."""
        return likelihoods.updated("forget").mean_B.mean()
