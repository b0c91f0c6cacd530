"""The protocol of an objective: a forget loss plus alpha times a retain loss, minimised by training.

The training loop knows only `Objective`. An objective gets what it needs from the views of the two models.
B batch, T tokens, D hidden size, N positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from unlearn.data.batches import Batch, Part
    from unlearn.methods.noise import Ahead

Result = TypeVar("Result")


class View(Protocol):
    """A model, frozen or updated, on one batch. `final` and `logits` need the whole model (`Method.needs_logits`)."""

    def hidden(self, part: Part, added_BTD: Tensor | None = None) -> Tensor:
        """h at layer l for a part of the batch: [B, T, D]. `added_BTD` is added where the trained layers begin."""
        ...

    def final(self, part: Part, hidden_BTD: Tensor | None = None) -> Tensor:
        """What the head takes, [B, T, D]: of `hidden(part)`, or of other states at layer l in its place."""
        ...

    def logits(self, states_ND: Tensor) -> Tensor:
        """The head's logits of such states: [N, V]."""
        ...

    def once(self, key: Hashable, compute: Callable[[], Result]) -> Result:
        """The result of `compute`, which runs once a batch for each key; the frozen view serves all variants."""
        ...

    def without_mask(self) -> View:
        """The same model without attention mask, so that it sees padding."""
        ...


@dataclass(frozen=True)
class Losses:
    """One step's losses (scalars), and further figures for the log."""

    forget: Tensor
    retain: Tensor  # not yet weighted
    alpha: float
    facts: Callable[[], dict[str, Tensor]]  # computed only for the steps that are logged
    # From the trained matrices, what is added to the gradient of each; called before the backward pass. None: nothing.
    gradient_noise: Callable[[Sequence[Tensor]], Sequence[Tensor | None]] | None = None

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


Alpha = float | Mapping[str, float]  # one number, or one for each topic


@dataclass(frozen=True)
class Setup:
    """What an objective is made of beside its method.

    `dim` is the hidden size, `seed` that of control vectors and noise, `alpha` the weight of the retain loss. `mask`
    says which positions the losses count (see `losses.counted_positions`). `ahead` draws noise ahead.
    """

    topics: Sequence[str]
    dim: int
    device: torch.device
    seed: int
    alpha: Alpha
    mask: str
    ahead: Ahead | None = None


def alpha_of(alpha: Alpha, topic: str) -> float:
    """The weight of a topic's retain loss."""
    return alpha[topic] if isinstance(alpha, Mapping) else alpha
