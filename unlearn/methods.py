"""RMU, Adaptive RMU and RSV: what should each forget representation become?

A method knows nothing of models, optimizers, configuration or tracking. It draws one control vector per topic
and turns the forget representation into the target y^f of Eq. 1. B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from unlearn.losses import at_least_float32, mean_norms

COEFFICIENT = "coefficient."


@dataclass(frozen=True)
class ForgetBatch:
    """What a method may look at. Representations [B, T, D] are computed only if a method asks for them."""

    topic: str
    control_D: Tensor  # the topic's control vector, float32
    counted_BT: Tensor  # bool: the positions that the loss counts
    frozen: Callable[[], Tensor]
    updated: Callable[[], Tensor]

    def at_every_position(self, target_D: Tensor) -> Tensor:
        """One vector as the target of all positions: [B, T, D], not copied."""
        return target_D.expand(*self.counted_BT.shape, -1)


class Method(Protocol):
    """What a method has to offer; a new one needs no more than this."""

    def control_vector(self, dim: int, generator: Generator) -> Tensor:
        """The topic's random direction: float32 [D], length 1."""
        ...

    def target(self, batch: ForgetBatch) -> Tensor:
        """The target y^f: [B, T, D]."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What was measured during training and belongs to the run's record: {name: tensor}."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave, among other names."""
        ...


def uniform_direction(dim: int, generator: Generator) -> Tensor:
    """u: uniform [0, 1) per dimension, normalised to length 1 (section 3.1): float32 [D]."""
    u_D = torch.rand(dim, generator=generator)
    return u_D / u_D.norm()


def gaussian_direction(dim: int, generator: Generator) -> Tensor:
    """epsilon: standard normal per dimension, normalised to length 1 (section 3.1): float32 [D]."""
    epsilon_D = torch.randn(dim, generator=generator)
    return epsilon_D / epsilon_D.norm()


class RMU:
    """y^f = c u (Eq. 2)."""

    def __init__(self, c: float) -> None:
        self.c = c

    def control_vector(self, dim: int, generator: Generator) -> Tensor:
        """Uniform direction u: float32 [D]."""
        return uniform_direction(dim, generator)

    def target(self, batch: ForgetBatch) -> Tensor:
        """c u at every position: float32 [B, T, D]."""
        return batch.at_every_position(self.c * batch.control_D)

    def state(self) -> dict[str, Tensor]:
        """Nothing is measured."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Nothing was measured."""


class AdaptiveRMU:
    """y^f = beta ||h(x^f)|| u (section 3.1); `norm` says what ||h(x^f)|| is.

    "sample": of the frozen model, the mean over the sample's own counted tokens (the paper).
    "first_batch": of the updated model, the mean over all samples of the topic's first batch, kept from then on (the
    published code).
    """

    def __init__(self, beta: float, norm: str = "sample") -> None:
        assert norm in ("sample", "first_batch"), norm
        self.beta, self.norm = beta, norm
        self._coefficients: dict[str, Tensor] = {}  # of "first_batch"

    def control_vector(self, dim: int, generator: Generator) -> Tensor:
        """Uniform direction u: float32 [D]."""
        return uniform_direction(dim, generator)

    def target(self, batch: ForgetBatch) -> Tensor:
        """beta times the norm, times u: float32 [B, T, D]."""
        if self.norm == "first_batch":
            if batch.topic not in self._coefficients:
                norms_B = mean_norms(batch.updated().detach(), batch.counted_BT)
                self._coefficients[batch.topic] = self.beta * norms_B.mean()
            return batch.at_every_position(self._coefficients[batch.topic] * batch.control_D)
        frozen_BTD = batch.frozen()
        norms_B = mean_norms(frozen_BTD, batch.counted_BT)
        return (self.beta * norms_B[:, None, None] * batch.control_D).expand(frozen_BTD.shape)

    def state(self) -> dict[str, Tensor]:
        """With "first_batch", each topic's coefficient beta ||h||: {"coefficient.TOPIC": scalar}."""
        return {f"{COEFFICIENT}{topic}": value for topic, value in self._coefficients.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take the coefficients over."""
        found = {key.removeprefix(COEFFICIENT): value for key, value in state.items() if key.startswith(COEFFICIENT)}
        self._coefficients = found


class RSV:
    """y^f = h_frozen(x^f) + c epsilon (section 3.1)."""

    def __init__(self, c: float) -> None:
        self.c = c

    def control_vector(self, dim: int, generator: Generator) -> Tensor:
        """Gaussian direction epsilon: float32 [D]."""
        return gaussian_direction(dim, generator)

    def target(self, batch: ForgetBatch) -> Tensor:
        """The frozen representation, shifted by c epsilon: float32 [B, T, D]."""
        return at_least_float32(batch.frozen()) + self.c * batch.control_D

    def state(self) -> dict[str, Tensor]:
        """Nothing is measured."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Nothing was measured."""
