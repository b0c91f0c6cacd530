"""Random Noise Augmentation: Gaussian noise on the retain target (Eq. 8, Algorithm 1 line 9).

B batch, T tokens, D hidden size.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from unlearn.methods.losses import at_least_float32
from unlearn.methods.randomness import generator


def standard_deviation(nu: float, scale: str) -> float:
    """What `nu` means: the noise's standard deviation ("std", the published code) or variance ("variance", Eq. 8)."""
    return {"std": nu, "variance": math.sqrt(nu)}[scale]


def augment(target_BTD: Tensor, mask_BT: Tensor, topic: str, step: int, *, nu: float, scale: str, seed: int) -> Tensor:
    """The retain target with noise delta ~ N(0, std^2 I), drawn anew for every step, token and dimension.

    Args:
        target_BTD: the frozen model's retain representation, any floating dtype.
        mask_BT: bool, True at the positions that the loss counts; others get no noise.
        nu, scale: see `standard_deviation`; nu = 0 returns `target_BTD` itself.
        seed, topic, step: with the row in the batch, the key of the noise.

    Returns:
        [B, T, D] in float32 or better (the target itself if nu = 0).
    """
    if nu == 0:
        return target_BTD
    counts = tuple(mask_BT.sum(dim=1).tolist())
    noise_ND = _noise(counts, target_BTD.shape[-1], topic, step, seed)
    target_BTD = at_least_float32(target_BTD)
    noise_BTD = torch.zeros_like(target_BTD)
    noise_BTD[mask_BT] = noise_ND.to(target_BTD)
    return target_BTD + standard_deviation(nu, scale) * noise_BTD


@lru_cache(maxsize=1)  # the points of a grid differ in nu and share the draw
def _noise(counts: tuple[int, ...], dim: int, topic: str, step: int, seed: int) -> Tensor:
    """Standard normal noise for each row's `counts` tokens, row after row: float32 [N, D] on the CPU."""
    rows = [torch.randn(n, dim, generator=generator(seed, "noise", topic, step, row)) for row, n in enumerate(counts)]
    return torch.cat(rows)
