"""A variant is one grid point: an objective, its own copies of the trained matrices, and their optimizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unlearn.errors import UserError
from unlearn.methods.method import Method
from unlearn.methods.objective import Objective
from unlearn.models.cutting import CutModel
from unlearn.models.delta import save_delta
from unlearn.training.optimizer import Optimizer

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
    """A variant of a model: its changed matrices, and what is needed to train them on.

    Attributes:
        method: what it was trained with.
        weights: {full parameter name: matrix}, the changed matrices; float32, or the model's dtype.
        records: the logged steps; `record.line()` is a row of numbers.
        error: why its training stopped early (a loss that is not finite); None if it did not.
        model: the model that it is a variant of.
        objective, optimizer, lr, progress, listener: of the training.
    """

    objective: Objective
    weights: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    lr: Callable[[int], float]  # step -> learning rate
    error: str | None = None
    progress: Progress = Progress()
    records: list[Record] = field(default_factory=list)
    listener: Listener = field(default_factory=Listener)
    method: Method | None = None
    model: CutModel | None = None

    def save(self, file: str | Path) -> None:
        """Write the delta: the changed matrices in the model's dtype, and control vectors, as safetensors.

        Raises UserError if the training stopped early.
        """
        model = self._trained()
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        metadata = {"model": model.name, "layer": str(model.layer), "method": repr(self.method)}
        save_delta(Path(file), self.weights, model.frozen, self.objective.state(), metadata)

    def export(self, folder: str | Path) -> None:
        """Write a whole checkpoint with tokenizer, for `AutoModelForCausalLM.from_pretrained(folder)`.

        The model in memory is as before. If it has only the layers up to l, the whole one is loaded for this.

        Raises UserError if the training stopped early, if the folder is not empty, or if there is no whole model.
        """
        self._trained().export(folder, self.weights)

    def _trained(self) -> CutModel:
        if self.error is not None:
            raise UserError(f"the training of {self.method} stopped: {self.error}")
        assert self.model is not None
        return self.model

    @property
    def nbytes(self) -> int:
        """Bytes of its matrices, and of the optimizer's moments, which are there from the first step on."""
        moments = [value for state in self.optimizer.state.values() for value in state.values()]
        return sum(tensor.nbytes for tensor in (*self.weights.values(), *moments))


def make_variant(
    objective: Objective,
    frozen: dict[str, Tensor],
    lr: float | Callable[[int], float],
    optimizer: Optimizer = Optimizer(),
    *,
    method: Method | None = None,
    model: CutModel | None = None,
) -> Variant:
    """A variant that starts from the frozen matrices. `lr` is one rate for all steps, or the rate of each.

    With precision "master" it has float32 copies of the matrices. With "model" they keep the model's dtype, where
    updates below half a unit in the last place are lost.
    """
    master = optimizer.precision == "master"
    weights = {
        n: w.detach().to(torch.float32 if master and w.element_size() < 4 else w.dtype, copy=True)
        for n, w in frozen.items()
    }
    for w in weights.values():
        w.requires_grad_(True)
    rate = lr if callable(lr) else lambda _: lr
    return Variant(objective, weights, optimizer.of(weights.values(), rate(0)), rate, method=method, model=model)
