"""Losses between representations (Eqs. 1, 2 and 8), the positions they count, and mean norms and cosines.

B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def counted_positions(mask_BT: Tensor, mode: str) -> Tensor:
    """Which positions a loss counts, bool [B, T], of a mask that is True at real tokens.

    "padding": all real tokens. "padding_and_bos": real tokens except each row's first. "none": every position, also
    padding (the published code).
    """
    if mode == "none":
        return mask_BT.new_ones(mask_BT.shape)
    if mode == "padding":
        return mask_BT
    assert mode == "padding_and_bos", mode
    return mask_BT & (mask_BT.cumsum(dim=1) > 1)


def masked_means(values_BT: Tensor, counted_BT: Tensor) -> Tensor:
    """Mean over each sample's counted positions: [B]."""
    assert values_BT.shape == counted_BT.shape, (values_BT.shape, counted_BT.shape)
    # A row without a counted position (a lone BOS) contributes 0 rather than 0 / 0.
    counts_B = counted_BT.sum(dim=1).clamp(min=1)
    return (values_BT * counted_BT).sum(dim=1) / counts_B


def masked_mean(values_BT: Tensor, counted_BT: Tensor) -> Tensor:
    """Mean over each sample's counted positions, then over samples: scalar."""
    return masked_means(values_BT, counted_BT).mean()


def representation_loss(h_BTD: Tensor, target_BTD: Tensor, counted_BT: Tensor) -> Tensor:
    """Mean squared difference over dimensions, counted positions and samples, in float32 or better: scalar.

    The paper's squared norm (Eq. 2) divided by D, as in the published code.
    """
    assert h_BTD.shape == target_BTD.shape, (h_BTD.shape, target_BTD.shape)
    difference_BTD = at_least_float32(h_BTD) - at_least_float32(target_BTD)
    return masked_mean(difference_BTD.square().mean(dim=-1), counted_BT)


def mean_norms(h_BTD: Tensor, counted_BT: Tensor) -> Tensor:
    """Each sample's mean Euclidean norm over its counted positions: [B]."""
    return masked_means(at_least_float32(h_BTD).norm(dim=-1), counted_BT)


def mean_norm(h_BTD: Tensor, counted_BT: Tensor) -> Tensor:
    """Mean Euclidean norm over counted positions, then over samples: scalar."""
    return mean_norms(h_BTD, counted_BT).mean()


def mean_cosine(a_BTD: Tensor, b_BTD: Tensor, counted_BT: Tensor) -> Tensor:
    """Mean cosine similarity over counted positions and samples: scalar."""
    assert a_BTD.shape == b_BTD.shape, (a_BTD.shape, b_BTD.shape)
    a_BTD, b_BTD = at_least_float32(a_BTD), at_least_float32(b_BTD)
    dots_BT = (a_BTD * b_BTD).sum(dim=-1)
    norms_BT = a_BTD.norm(dim=-1) * b_BTD.norm(dim=-1)
    return masked_mean(dots_BT / norms_BT.clamp(min=1e-12), counted_BT)


def at_least_float32(x: Tensor) -> Tensor:
    """float32 for half precision; float32 and float64 as they are."""
    return x if x.element_size() >= 4 else x.float()
