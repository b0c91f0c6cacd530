"""Losses against arithmetic worked out by hand."""

import pytest
import torch

from unlearn.methods.losses import counted_positions, masked_mean, mean_cosine, mean_norm, representation_loss

# Two sequences of unequal length, D = 2.
H_BTD = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]], [[0.0, 0.0], [6.0, 8.0], [1.0, 0.0]]])
Y_BTD = torch.zeros(2, 3, 2)
MASK_BT = torch.tensor([[True, True, False], [True, True, True]])


def test_representation_loss_by_hand():
    """Row 0: (1+4)/2 = 2.5 and (9+16)/2 = 12.5, mean 7.5; the third token is padding.

    Row 1: 0, (36+64)/2 = 50, 1/2, mean 50.5/3. Mean of rows: (7.5 + 16.8333)/2.
    """
    assert representation_loss(H_BTD, Y_BTD, MASK_BT).item() == pytest.approx((7.5 + 50.5 / 3) / 2)


def test_every_position_counts_when_nothing_is_masked():
    """Row 0 gets (9 + 9) * 9 / 2 = 81 for its padding: (2.5 + 12.5 + 81) / 3 = 32."""
    everything = counted_positions(MASK_BT, "none")
    assert representation_loss(H_BTD, Y_BTD, everything).item() == pytest.approx((32 + 50.5 / 3) / 2)


def test_bos_is_the_first_real_token_on_either_side():
    left = torch.tensor([[False, True, True], [True, True, True]])
    assert counted_positions(left, "padding_and_bos").tolist() == [[False, False, True], [False, True, True]]
    assert counted_positions(MASK_BT, "padding_and_bos").tolist() == [[False, True, False], [False, True, True]]


def test_a_row_without_counted_positions_counts_as_zero_and_gives_no_nan():
    nothing = torch.tensor([[False, False, False], [True, False, False]])
    assert masked_mean(torch.full((2, 3), 4.0), nothing).item() == 2.0


def test_shapes_must_agree():
    with pytest.raises(AssertionError):
        representation_loss(H_BTD, Y_BTD[:1], MASK_BT)
    with pytest.raises(AssertionError):
        masked_mean(H_BTD[..., 0], MASK_BT[:1])


def test_norm_and_cosine_by_hand():
    """Norms: row 0 sqrt 5 and 5; row 1: 0, 10, 1. Cosine to (1, 0): 1/sqrt 5, 0.6; 0 (no direction), 0.6, 1."""
    assert mean_norm(H_BTD, MASK_BT).item() == pytest.approx(((5**0.5 + 5) / 2 + 11 / 3) / 2)
    along_BTD = torch.tensor([1.0, 0.0]).expand(H_BTD.shape)
    assert mean_cosine(H_BTD, along_BTD, MASK_BT).item() == pytest.approx(((5**-0.5 + 0.6) / 2 + 1.6 / 3) / 2)


def test_half_precision_is_summed_in_float32():
    h_BTD = torch.full((2, 4, 512), 300.0, dtype=torch.float16)  # its square overflows float16
    mask_BT = torch.ones(2, 4, dtype=torch.bool)
    assert representation_loss(h_BTD, torch.zeros_like(h_BTD), mask_BT).item() == 90_000.0
