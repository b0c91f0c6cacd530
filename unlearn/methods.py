"""RMU, Adaptive RMU and RSV: what should each forget representation become?

A method knows nothing of models, optimizers, configuration or tracking. It draws one control vector per topic
and turns the frozen model's forget representation into the target y^f of Eq. 1. B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Generator, Tensor

from unlearn.losses import at_least_float32, masked_mean


class Method(Protocol):
    """What a method has to offer; a new one needs no more than this."""

    def control_vector(self, dim: int, generator: Generator) -> Tensor:
        """The topic's random direction: float32 [D], length 1."""
        ...

    def target(self, frozen_BTD: Tensor, counted_BT: Tensor, control_D: Tensor) -> Tensor:
        """The target y^f: [B, T, D], from the frozen model's forget representation."""
        ...


def uniform_direction(dim: int, generator: Generator) -> Tensor:
    """u: uniform [0, 1) per dimension, normalised to length 1 (section 3.1): float32 [D]."""
    u_D = torch.rand(dim, generator=generator)
    return u_D / u_D.norm()


def gaussian_direction(dim: int, generator: Generator) -> Tensor:
    """epsilon: standard normal per dimension, normalised to length 1 (section 3.1): float32 [D]."""
    epsilon_D = torch.randn(dim, generator=generator)
    return epsilon_D / epsilon_D.norm()


class RMU:
    """y^f = c u (Eq. 2)."""

    def __init__(self, c: float) -> None:
        self.c = c

    def control_vector(self, dim: int, generator: Generator) -> Tensor:
        """Uniform direction u: float32 [D]."""
        return uniform_direction(dim, generator)

    def target(self, frozen_BTD: Tensor, counted_BT: Tensor, control_D: Tensor) -> Tensor:
        """c u at every position: float32 [B, T, D]."""
        return (self.c * control_D).expand(frozen_BTD.shape)


class AdaptiveRMU:
    """y^f = beta ||h_frozen(x^f)|| u, the norm being the mean over the sample's own counted tokens (section 3.1)."""

    def __init__(self, beta: float) -> None:
        self.beta = beta

    def control_vector(self, dim: int, generator: Generator) -> Tensor:
        """Uniform direction u: float32 [D]."""
        return uniform_direction(dim, generator)

    def target(self, frozen_BTD: Tensor, counted_BT: Tensor, control_D: Tensor) -> Tensor:
        """beta times each sample's mean norm, times u: float32 [B, T, D]."""
        norms_BT = at_least_float32(frozen_BTD).norm(dim=-1)
        norms_B = torch.stack([masked_mean(n[None], m[None]) for n, m in zip(norms_BT, counted_BT, strict=True)])
        return (self.beta * norms_B[:, None, None] * control_D).expand(frozen_BTD.shape)


class RSV:
    """y^f = h_frozen(x^f) + c epsilon (section 3.1)."""

    def __init__(self, c: float) -> None:
        self.c = c

    def control_vector(self, dim: int, generator: Generator) -> Tensor:
        """Gaussian direction epsilon: float32 [D]."""
        return gaussian_direction(dim, generator)

    def target(self, frozen_BTD: Tensor, counted_BT: Tensor, control_D: Tensor) -> Tensor:
        """The frozen representation, shifted by c epsilon: float32 [B, T, D]."""
        return at_least_float32(frozen_BTD) + self.c * control_D
