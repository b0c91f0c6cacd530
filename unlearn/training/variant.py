"""A variant is one grid point: an objective, its own copies of the trained matrices, and their optimizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unlearn.methods.objective import Objective
from unlearn.training.optimizer import OPTIMIZERS


@dataclass(frozen=True)
class Progress:
    """A variant's progress over all attempts: steps, real tokens, seconds."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0


@dataclass
class Variant:
    """One grid point: its objective, its matrices {full name: leaf tensor} and their optimizer."""

    objective: Objective
    weights: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    lr: Callable[[int], float]  # step -> learning rate
    error: str | None = None  # why training stopped early
    progress: Progress = Progress()

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
