"""Random Noise Augmentation: Eq. 8."""

import pytest
import torch

from unlearn.errors import UserError
from unlearn.methods.noise import Augmentation
from unlearn.methods.rna import RNA


def augment(h_BTD, mask_BT, nu, scale="std", seed=0, topic="bio", step=0, per="token"):
    return Augmentation(RNA(nu, scale, per), seed)(h_BTD, mask_BT, topic, step)


def test_nu_zero_is_exactly_no_rna():
    h_BTD = torch.randn(2, 3, 4)
    assert augment(h_BTD, torch.ones(2, 3, dtype=torch.bool), 0.0) is h_BTD


def test_scale_says_what_nu_means():
    assert RNA(0.09).std == 0.09
    assert RNA(0.09, "variance").std == pytest.approx(0.3)


def test_what_is_not_allowed_is_named():
    with pytest.raises(UserError, match=r"^nu=-1 is not allowed: it must be a finite number >= 0"):
        RNA(-1)
    with pytest.raises(UserError, match=r"^scale=sd is not allowed\. Did you mean 'std'\? Allowed: std, variance"):
        RNA(1.0, "sd")


@pytest.mark.parametrize(("scale", "std"), [("std", 0.5), ("variance", 0.5**0.5)])
def test_noise_is_gaussian_with_that_spread(scale, std):
    """40,000 draws: standard errors of mean and std are std/200 and std/283; five of them are allowed."""
    mask_BT = torch.ones(2, 100, dtype=torch.bool)
    noise = augment(torch.zeros(2, 100, 200), mask_BT, 0.5, scale).flatten()
    assert abs(noise.mean().item()) < 5 * std / 200
    assert noise.std().item() == pytest.approx(std, abs=5 * std / 283)
    assert ((noise.abs() < std).float().mean().item()) == pytest.approx(0.6827, abs=0.015)


def test_padding_gets_no_noise_and_does_not_change_the_noise_of_tokens():
    mask_BT = torch.tensor([[True, True, False, False], [True, True, True, True]])
    right = augment(torch.zeros(2, 4, 8), mask_BT, 1.0)
    left = augment(torch.zeros(2, 4, 8), mask_BT.flip(1), 1.0)
    alone = augment(torch.zeros(1, 2, 8), mask_BT[:1, :2], 1.0)
    assert (right[0, 2:] == 0).all()
    assert (left[0, :2] == 0).all()
    assert torch.equal(right[0, :2], left[0, 2:])
    assert torch.equal(right[0, :2], alone[0])


def test_every_step_topic_seed_and_row_has_noise_of_its_own():
    mask_BT = torch.ones(2, 3, dtype=torch.bool)
    keys = [{}, {"step": 1}, {"topic": "cyber"}, {"seed": 1}]
    draws = [augment(torch.zeros(2, 3, 4), mask_BT, 1.0, **key) for key in keys]
    rows = {tuple(row.flatten().tolist()) for draw in draws for row in draw}
    assert len(rows) == 8
    assert torch.equal(draws[0], augment(torch.zeros(2, 3, 4), mask_BT, 1.0))


def test_noise_of_a_text_is_one_vector_for_all_its_tokens():
    mask_BT = torch.tensor([[True, True, False, False], [True, True, True, True]])
    noise_BTD = augment(torch.zeros(2, 4, 200), mask_BT, 0.5, per="text")
    assert (noise_BTD[0, 2:] == 0).all()
    for tokens_TD in (noise_BTD[0, :2], noise_BTD[1]):
        assert (tokens_TD == tokens_TD[0]).all()
        assert tokens_TD[0].std().item() == pytest.approx(0.5, abs=5 * 0.5 / 20)  # 200 draws
    assert (noise_BTD[0, 0] != noise_BTD[1, 0]).all()


def test_half_precision_targets_keep_the_noise_in_float32():
    h_BTD = torch.full((1, 2, 4), 100.0, dtype=torch.bfloat16)
    noisy = augment(h_BTD, torch.ones(1, 2, dtype=torch.bool), 0.01)
    assert noisy.dtype == torch.float32
    assert (noisy != 100).all()  # in bfloat16 all of the noise would round away
