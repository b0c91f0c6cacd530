"""Targets y^f against the paper's equations, worked out by hand."""

import pytest
import torch

from unlearn.methods import RMU, RSV, AdaptiveRMU
from unlearn.randomness import generator

U_D = torch.tensor([0.6, 0.8])
H_BTD = torch.tensor([[[3.0, 4.0], [0.0, 1.0], [7.0, 7.0]], [[6.0, 8.0], [0.0, 2.0], [5.0, 12.0]]])
MASK_BT = torch.tensor([[True, True, False], [True, True, True]])


def test_rmu_is_c_u_everywhere():
    """Eq. 2: 10 * (0.6, 0.8)."""
    assert RMU(c=10).target(H_BTD, MASK_BT, U_D).tolist() == [[[6, 8]] * 3] * 2


def test_adaptive_rmu_scales_by_each_samples_own_mean_norm():
    """Sample 0: (5 + 1) / 2 = 3, its padding left out; sample 1: (10 + 2 + 13) / 3 = 25/3. Times beta = 2."""
    target_BTD = AdaptiveRMU(beta=2).target(H_BTD, MASK_BT, U_D)
    torch.testing.assert_close(target_BTD[0], (6 * U_D).expand(3, 2))
    torch.testing.assert_close(target_BTD[1], (50 / 3 * U_D).expand(3, 2))


def test_rsv_shifts_the_frozen_representation():
    """h + 10 * (0.6, 0.8)."""
    torch.testing.assert_close(RSV(c=10).target(H_BTD, MASK_BT, U_D), H_BTD + torch.tensor([6.0, 8.0]))


@pytest.mark.parametrize("method", [RMU(1.0), AdaptiveRMU(1.0), RSV(1.0)])
def test_targets_of_half_precision_models_are_float32(method):
    target_BTD = method.target(H_BTD.bfloat16(), MASK_BT, U_D)
    assert target_BTD.dtype == torch.float32
    assert target_BTD.shape == H_BTD.shape


def test_directions_have_length_one_and_their_distribution():
    """u is uniform, so positive; epsilon is Gaussian, so both signs, its mean near 0."""
    u_D = RMU(1.0).control_vector(4096, generator(0, "control", "bio"))
    epsilon_D = RSV(1.0).control_vector(4096, generator(0, "control", "bio"))
    assert u_D.norm().item() == pytest.approx(1, abs=1e-5)
    assert epsilon_D.norm().item() == pytest.approx(1, abs=1e-5)
    assert (u_D >= 0).all()
    # Uniform: mean / max is about 1/2; Gaussian: |mean| below 4 standard errors.
    assert (u_D.mean() / u_D.max()).item() == pytest.approx(0.5, abs=0.03)
    assert abs(epsilon_D.mean().item()) < 4 / 4096


def test_topics_and_seeds_have_directions_of_their_own():
    draws = [RMU(1.0).control_vector(8, generator(s, "control", t)) for s in (0, 1) for t in ("bio", "cyber")]
    assert len({tuple(u.tolist()) for u in draws}) == 4
    torch.testing.assert_close(RMU(5.0).control_vector(8, generator(0, "control", "bio")), draws[0])
