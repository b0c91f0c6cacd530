"""What a method sees of a step of training. B batch, T tokens, D hidden size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from unlearn.data.batches import Part


@dataclass(frozen=True)
class ForgetBatch:
    """What a method sees of a step. Representations [B, T, D] are computed only if it asks for them.

    Args:
        topic: the topic's name.
        control_D: the topic's control vector, float32.
        counted_BT: bool, the positions that the loss counts.
        frozen: returns the frozen model's hidden states at layer l, in the model's dtype.
        updated: the same of the model that is trained.
        measured: what methods measured once, by name; see `measured_once`.
    """

    topic: str
    control_D: Tensor
    counted_BT: Tensor
    frozen: Callable[[], Tensor]
    updated: Callable[[], Tensor]
    measured: dict[str, Tensor] = field(default_factory=dict)

    def at_every_position(self, target_D: Tensor) -> Tensor:
        """One vector as the target of all positions: [B, T, D], not copied."""
        return target_D.expand(*self.counted_BT.shape, -1)

    def measured_once(self, name: str, measure: Callable[[], Tensor]) -> Tensor:
        """What `measure` returned in the topic's first step; it is saved with checkpoints and with the delta."""
        key = f"{name}.{self.topic}"
        if key not in self.measured:
            self.measured[key] = measure()
        return self.measured[key]


@dataclass(frozen=True)
class LogLikelihoods:
    """Log-likelihoods of a part's samples under one model, in nats: of all their counted tokens, and the tokens' mean.

    The first token of a sample is not predicted and not counted.
    """

    sum_B: Tensor
    mean_B: Tensor


@dataclass(frozen=True)
class Pair:
    """Log-likelihoods of the batch's parts under both models, computed when asked for.

    A part is "forget", "retain" or "preferred".
    """

    updated: Callable[[Part], LogLikelihoods]
    reference: Callable[[Part], LogLikelihoods]
