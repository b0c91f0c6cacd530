"""What one update minimises: Eq. 8, a forget loss plus alpha times a retain loss with RNA's noise on its target.

The training loop knows only `Objective`. One that works on something else than layer l's representation joins by
asking its views for that. B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from unlearn.data.batches import Batch

Part = Literal["forget", "retain"]


class View(Protocol):
    """A model, frozen or updated, looking at one batch."""

    def hidden(self, part: Part) -> Tensor:
        """h at layer l for the forget or the retain part: [B, T, D]."""
        ...


@dataclass(frozen=True)
class Losses:
    """One step's losses, scalars, and what else is worth logging."""

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
        """Random and measured quantities that belong to the run's record: {name: tensor}."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        ...
