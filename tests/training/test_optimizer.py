"""The published AdamW against its formula, worked out by hand."""

import math

import pytest
import torch

from unlearn.training.optimizer import PublishedAdamW


def test_eps_is_added_before_the_bias_correction():
    """m = 0.1 g, v = 0.001 g^2 after one step: lr sqrt(1 - b2) / (1 - b1) m / (sqrt(v) + eps), twice."""
    g, lr, eps, b1, b2 = 1e-5, 0.5, 1e-6, 0.9, 0.999
    w = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    optimizer = PublishedAdamW([w], lr=lr, betas=(b1, b2), eps=eps, weight_decay=0.0)
    expected, m, v = 1.0, 0.0, 0.0
    for t in (1, 2):
        w.grad = torch.tensor([g], dtype=torch.float64)
        optimizer.step()
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        expected -= lr * math.sqrt(1 - b2**t) / (1 - b1**t) * m / (math.sqrt(v) + eps)
        assert w.item() == pytest.approx(expected, rel=1e-12)
    plain = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    plain.grad = torch.tensor([g], dtype=torch.float64)
    torch.optim.AdamW([plain], lr=lr, betas=(b1, b2), eps=eps, weight_decay=0.0).step()
    assert 1 - plain.item() > 3 * (1 - expected) / 2  # the difference is not a matter of rounding
