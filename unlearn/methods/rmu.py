"""RMU: every forget representation becomes one random vector of fixed length. B batch, T tokens, D hidden size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from unlearn.arguments import check_number
from unlearn.methods.misdirection import MisdirectionMethod

if TYPE_CHECKING:
    from torch import Tensor

    from unlearn.methods.inputs import ForgetBatch


@dataclass(frozen=True)
class RMU(MisdirectionMethod):
    """y^f = c u (Eq. 2).

    Args:
        c: the length of the target in units of the hidden states at layer l, above 0.
        rna: noise on the target of the retain loss.
    """

    c: float

    def __post_init__(self) -> None:
        check_number("c", self.c, above=0)

    def target(self, batch: ForgetBatch) -> Tensor:
        """c u at every position: float32 [B, T, D]."""
        return batch.at_every_position(self.c * batch.control_D)
