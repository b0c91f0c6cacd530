"""The base class of methods on representations, which answer one question: to what target y^f (Eq. 1) is the forget
representation pushed? `misdirection_loss.py` has the loss. B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from unlearn.methods.method import Method

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from unlearn.methods.inputs import ForgetBatch
    from unlearn.methods.misdirection_loss import Misdirection
    from unlearn.methods.objective import Setup


@dataclass(frozen=True)
class MisdirectionMethod(Method):
    """The base class of methods on representations: a frozen dataclass of their arguments."""

    needs_logits: ClassVar[bool] = False

    @abstractmethod
    def control_vector(self, dim: int, generator: Generator) -> Tensor:
        """The topic's random direction, drawn with `generator` on the CPU: float32 [D], length 1."""

    @abstractmethod
    def target(self, batch: ForgetBatch) -> Tensor:
        """The target y^f: [B, T, D], float32 or better. No gradient flows through it."""

    def objective(self, setup: Setup) -> Misdirection:
        """Eq. 8 with this method's target."""
        from unlearn.methods.misdirection_loss import Misdirection

        return Misdirection.of(self, setup)
