"""Random unit vectors that a topic's forget representations are pushed to. D hidden size."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, Tensor


def uniform_direction(dim: int, generator: Generator) -> Tensor:
    """u: uniform [0, 1) per dimension, normalised to length 1 (section 3.1): float32 [D]."""
    import torch

    u_D = torch.rand(dim, generator=generator)
    return u_D / u_D.norm()


def gaussian_direction(dim: int, generator: Generator) -> Tensor:
    """epsilon: standard normal per dimension, normalised to length 1 (section 3.1): float32 [D]."""
    import torch

    epsilon_D = torch.randn(dim, generator=generator)
    return epsilon_D / epsilon_D.norm()
