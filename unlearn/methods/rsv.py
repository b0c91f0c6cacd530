"""RSV: a random vector is added to every forget representation. B batch, T tokens, D hidden size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from unlearn.arguments import check_number
from unlearn.methods.losses import at_least_float32
from unlearn.methods.misdirection import MisdirectionMethod

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from unlearn.methods.inputs import ForgetBatch


@dataclass(frozen=True)
class RSV(MisdirectionMethod):
    """y^f = h_frozen(x^f) + c epsilon (section 3.1).

    Args:
        c: the length of the added vector in units of the hidden states at layer l, above 0.
        rna: noise on the target of the retain loss.
    """

    c: float

    def __post_init__(self) -> None:
        check_number("c", self.c, above=0)

    def control_vector(self, dim: int, generator: Generator) -> Tensor:
        """epsilon: standard normal per dimension, normalised to length 1 (section 3.1): float32 [D]."""
        import torch

        epsilon_D = torch.randn(dim, generator=generator)
        return epsilon_D / epsilon_D.norm()

    def target(self, batch: ForgetBatch) -> Tensor:
        """The frozen representation, shifted by c epsilon: float32 [B, T, D]."""
        return at_least_float32(batch.frozen()) + self.c * batch.control_D
