"""RSV: a random vector is added to every forget representation. B batch, T tokens, D hidden size."""

from __future__ import annotations

from torch import Generator, Tensor

from unlearn.methods.directions import gaussian_direction
from unlearn.methods.losses import at_least_float32
from unlearn.methods.misdirection import ForgetBatch, MisdirectionMethod


class RSV(MisdirectionMethod):
    """y^f = h_frozen(x^f) + c epsilon (section 3.1)."""

    def __init__(self, c: float) -> None:
        self.c = c

    def control_vector(self, dim: int, generator: Generator) -> Tensor:
        """Gaussian direction epsilon: float32 [D]."""
        return gaussian_direction(dim, generator)

    def target(self, batch: ForgetBatch) -> Tensor:
        """The frozen representation, shifted by c epsilon: float32 [B, T, D]."""
        return at_least_float32(batch.frozen()) + self.c * batch.control_D
