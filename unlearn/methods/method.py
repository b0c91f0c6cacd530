"""The protocol of a method on representations: it computes the target of each forget representation.

A method knows nothing of models, optimizers, configuration or tracking. It draws one control vector per topic
and turns the forget representation into the target y^f of Eq. 1. B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Generator, Tensor


@dataclass(frozen=True)
class ForgetBatch:
    """The inputs of a method. Representations [B, T, D] are computed only if it asks for them."""

    topic: str
    control_D: Tensor  # the topic's control vector, float32
    counted_BT: Tensor  # bool: the positions that the loss counts
    frozen: Callable[[], Tensor]
    updated: Callable[[], Tensor]

    def at_every_position(self, target_D: Tensor) -> Tensor:
        """One vector as the target of all positions: [B, T, D], not copied."""
        return target_D.expand(*self.counted_BT.shape, -1)


class Method(Protocol):
    """What a method must implement."""

    def control_vector(self, dim: int, generator: Generator) -> Tensor:
        """The topic's random direction: float32 [D], length 1."""
        ...

    def target(self, batch: ForgetBatch) -> Tensor:
        """The target y^f: [B, T, D]."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Values measured during training, to be saved: {name: tensor}."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore the values of `state`; other names are ignored."""
        ...
