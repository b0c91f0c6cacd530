"""The protocol of an objective, which one update minimises: a forget loss plus alpha times a retain loss.

The training loop knows only `Objective`. An objective gets what it needs from the views of the two models.
B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from unlearn.data.batches import Batch

Part = Literal["forget", "retain"]


class View(Protocol):
    """The states of a model, frozen or updated, on one batch."""

    def hidden(self, part: Part) -> Tensor:
        """h at layer l for the forget or the retain part: [B, T, D]."""
        ...


@dataclass(frozen=True)
class Losses:
    """One step's losses (scalars), and further figures for the log."""

    forget: Tensor
    retain: Tensor  # not yet weighted
    alpha: float
    facts: Callable[[], dict[str, Tensor]]  # computed only for the steps that are logged

    @property
    def total(self) -> Tensor:
        """Eq. 1."""
        return self.forget + self.alpha * self.retain


class Objective(Protocol):
    """What the training loop minimises for one variant."""

    def __call__(self, batch: Batch, frozen: View, updated: View) -> Losses:
        """Losses on one batch, differentiable in the updated model's weights."""
        ...

    def prepare(self, batch: Batch) -> None:
        """Called with the batch of the next step, on the CPU, before this step is computed: draw random numbers ahead.

        Returns at once. Most objectives have nothing to prepare.
        """
        ...

    def state(self) -> dict[str, Tensor]:
        """Random and measured values, to be saved: {name: tensor}."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore the values of `state`."""
        ...
