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

    def control_vector(self, dim: int, generator: Generator) -> Tensor:
        """The topic's random direction, drawn with `generator` on the CPU: float32 [D], length 1.

        u of section 3.1, unless a method has another one: uniform in [0, 1) per dimension, then normalised.
        """
        import torch

        u_D = torch.rand(dim, generator=generator)
        return u_D / u_D.norm()

    @abstractmethod
    def target(self, batch: ForgetBatch) -> Tensor:
        """The target y^f: [B, T, D], float32 or better. No gradient flows through it."""

    def objective(self, setup: Setup) -> Misdirection:
        """Eq. 8 with this method's target, and its control vectors drawn."""
        from unlearn.methods.misdirection_loss import Misdirection
        from unlearn.methods.noise import Augmentation
        from unlearn.methods.randomness import generator

        controls = {
            topic: self.control_vector(setup.dim, generator(setup.seed, "control", topic)).to(setup.device)
            for topic in setup.topics
        }
        noise = Augmentation(self.rna, setup.seed, setup.ahead)
        return Misdirection(self, controls, setup.alpha, setup.mask, noise)
