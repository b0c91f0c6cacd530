"""Targets y^f against the paper's equations, worked out by hand."""

import pytest
import torch

from unlearn.errors import UserError
from unlearn.methods.adaptive_rmu import AdaptiveRMU
from unlearn.methods.inputs import ForgetBatch
from unlearn.methods.randomness import generator
from unlearn.methods.rmu import RMU
from unlearn.methods.rsv import RSV

U_D = torch.tensor([0.6, 0.8])
H_BTD = torch.tensor([[[3.0, 4.0], [0.0, 1.0], [7.0, 7.0]], [[6.0, 8.0], [0.0, 2.0], [5.0, 12.0]]])
MASK_BT = torch.tensor([[True, True, False], [True, True, True]])


def batch(frozen_BTD=H_BTD, updated_BTD=None, topic="bio", measured=None):
    measured = {} if measured is None else measured
    return ForgetBatch(topic, U_D, MASK_BT, lambda: frozen_BTD, lambda: updated_BTD, measured)


def test_rmu_is_c_u_everywhere():
    """Eq. 2: 10 * (0.6, 0.8)."""
    assert RMU(c=10).target(batch()).tolist() == [[[6, 8]] * 3] * 2


def test_adaptive_rmu_scales_by_each_samples_own_mean_norm():
    """Sample 0: (5 + 1) / 2 = 3, its padding left out; sample 1: (10 + 2 + 13) / 3 = 25/3. Times beta = 2."""
    target_BTD = AdaptiveRMU(beta=2).target(batch())
    torch.testing.assert_close(target_BTD[0], (6 * U_D).expand(3, 2))
    torch.testing.assert_close(target_BTD[1], (50 / 3 * U_D).expand(3, 2))


def test_adaptive_rmu_can_keep_the_updated_models_norm_of_the_first_batch():
    """Norms 3 and 25/3 of the two samples as above, of the updated model: mean 17/3, times beta = 2, for good."""
    method, measured = AdaptiveRMU(beta=2, norm="first_batch"), {}
    for updated_BTD in (H_BTD, 5 * H_BTD):
        target_BTD = method.target(batch(0 * H_BTD, updated_BTD, measured=measured))
        torch.testing.assert_close(target_BTD, (34 / 3 * U_D).expand(2, 3, 2))
    method.target(batch(H_BTD, 3 * H_BTD, "cyber", measured))
    assert {name: round(value.item(), 4) for name, value in measured.items()} == {
        "coefficient.bio": 11.3333,
        "coefficient.cyber": 34.0,
    }


def test_rmu_asks_for_no_representation():
    """So the frozen span need not run over its forget batches."""

    def never():
        raise AssertionError

    assert RMU(c=10).target(ForgetBatch("bio", U_D, MASK_BT, never, never)).shape == H_BTD.shape


def test_rsv_shifts_the_frozen_representation():
    """h + 10 * (0.6, 0.8)."""
    torch.testing.assert_close(RSV(c=10).target(batch()), H_BTD + torch.tensor([6.0, 8.0]))


@pytest.mark.parametrize("method", [RMU(1.0), AdaptiveRMU(1.0), RSV(1.0)])
def test_targets_of_half_precision_models_are_float32(method):
    target_BTD = method.target(batch(H_BTD.bfloat16()))
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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RMU(c=0), r"^c=0 is not allowed: it must be a finite number > 0"),
        (lambda: RMU(c="6.5"), r"^c='6\.5' is not allowed: it must be a number"),
        (lambda: RSV(c=float("nan")), r"^c=nan is not allowed"),
        (lambda: AdaptiveRMU(beta=-1), r"^beta=-1 is not allowed"),
        (lambda: AdaptiveRMU(3, norm="samples"), r"^norm=samples is not allowed\. Did you mean 'sample'\? Allowed"),
    ],
)
def test_what_is_not_allowed_is_named(make, message):
    with pytest.raises(UserError, match=message):
        make()
