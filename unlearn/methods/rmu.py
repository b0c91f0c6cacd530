"""RMU: every forget representation becomes one random vector of fixed length. B batch, T tokens, D hidden size."""

from __future__ import annotations

from torch import Generator, Tensor

from unlearn.methods.directions import uniform_direction
from unlearn.methods.misdirection import ForgetBatch, MisdirectionMethod


class RMU(MisdirectionMethod):
    """y^f = c u (Eq. 2)."""

    def __init__(self, c: float) -> None:
        self.c = c

    def control_vector(self, dim: int, generator: Generator) -> Tensor:
        """Uniform direction u: float32 [D]."""
        return uniform_direction(dim, generator)

    def target(self, batch: ForgetBatch) -> Tensor:
        """c u at every position: float32 [B, T, D]."""
        return batch.at_every_position(self.c * batch.control_D)
