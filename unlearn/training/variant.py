"""A variant is one grid point: an objective, its own copies of the trained matrices, and their optimizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unlearn.methods.objective import Objective
from unlearn.training.optimizer import OPTIMIZERS

if TYPE_CHECKING:
    from unlearn.training.loop import Record


@dataclass(frozen=True)
class Progress:
    """A variant's progress over all attempts: steps, real tokens, seconds."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0


class Listener:
    """What is done during the training of a variant; by default nothing. `Schedule` says after which steps."""

    def on_record(self, variant: Variant, record: Record) -> None:
        """A step was logged. The first and the last step always are."""

    def on_checkpoint(self, variant: Variant) -> None:
        """A checkpoint is due; never after the last step."""

    def on_keep(self, variant: Variant) -> None:
        """The weights are to be kept, to be evaluated later; never after the last step."""


@dataclass
class Variant:
    """One grid point: its objective, its matrices {full name: leaf tensor}, their optimizer, and what was logged."""

    objective: Objective
    weights: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    lr: Callable[[int], float]  # step -> learning rate
    error: str | None = None  # why training stopped early
    progress: Progress = Progress()
    records: list[Record] = field(default_factory=list)
    listener: Listener = field(default_factory=Listener)

    @property
    def nbytes(self) -> int:
        """Bytes of its matrices, and of the optimizer's moments, which are there from the first step on."""
        moments = [value for state in self.optimizer.state.values() for value in state.values()]
        return sum(tensor.nbytes for tensor in (*self.weights.values(), *moments))


def make_variant(
    objective: Objective,
    frozen: dict[str, Tensor],
    *,
    lr: float | Callable[[int], float],
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    precision: str,
    optimizer: str,
) -> Variant:
    """A variant that starts from the frozen matrices.

    `optimizer` is a name in `unlearn.training.optimizer.OPTIMIZERS`; `lr` one rate for all steps, or the rate of each.

    `precision` "master" trains float32 copies of the matrices; "model" trains in the model's dtype, where updates
    below half a unit in the last place are lost.
    """
    weights = {
        n: w.detach().to(torch.float32 if precision == "master" and w.element_size() < 4 else w.dtype, copy=True)
        for n, w in frozen.items()
    }
    for w in weights.values():
        w.requires_grad_(True)
    rate = lr if callable(lr) else lambda _: lr
    update = OPTIMIZERS[optimizer](
        weights.values(), lr=rate(0), betas=betas, eps=eps, weight_decay=weight_decay, fused=True
    )
    return Variant(objective, weights, update, rate)
