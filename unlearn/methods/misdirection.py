"""Representation misdirection: Eq. 8, a forget loss plus alpha times a retain loss with RNA's noise on its target.

A method of this family answers one question: to what target y^f (Eq. 1) is the forget representation pushed? It draws
one control vector for each topic. B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from unlearn.data.batches import Batch
from unlearn.methods.losses import counted_positions, mean_cosine, mean_norm, representation_loss
from unlearn.methods.objective import Alpha, Losses, Setup, View, alpha_of
from unlearn.methods.randomness import generator
from unlearn.methods.rna import RNA

CONTROL = "control."


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


class MisdirectionMethod(ABC):
    """A method on representations. It measures nothing unless it overrides `state` and `restore`."""

    needs_logits = False

    @abstractmethod
    def control_vector(self, dim: int, generator: Generator) -> Tensor:
        """The topic's random direction: float32 [D], length 1."""

    @abstractmethod
    def target(self, batch: ForgetBatch) -> Tensor:
        """The target y^f: [B, T, D]."""

    def state(self) -> dict[str, Tensor]:
        """Values measured during training, to be saved: {name: tensor}."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027 - nothing to restore by default
        """Restore the values of `state`; other names are ignored."""

    def objective(self, setup: Setup) -> Misdirection:
        """Eq. 8 with this method's target."""
        controls = {
            topic: self.control_vector(setup.dim, generator(setup.seed, "control", topic)).to(setup.device)
            for topic in setup.topics
        }
        return Misdirection(self, controls, setup.alpha, setup.mask, setup.rna)


@dataclass(frozen=True)
class Misdirection:
    """Eq. 8 with the target of any method, and RNA on the retain target.

    `controls` holds each topic's control vector (float32 [D]) on the model's device; for the others see `Setup`.
    """

    method: MisdirectionMethod
    controls: dict[str, Tensor]
    alpha: Alpha
    mask: str
    rna: RNA

    def __call__(self, batch: Batch, frozen: View, updated: View) -> Losses:
        """Forget and retain loss; for the log, norms, the cosine to the target and the drift of retain states."""
        forget_BT = counted_positions(batch.forget.mask_BT, self.mask)
        retain_BT = counted_positions(batch.retain.mask_BT, self.mask)
        with torch.no_grad():
            retain_target_BTD = self.rna(frozen.hidden("retain"), retain_BT, batch.topic, batch.step)
        forget_BTD, retain_BTD = updated.hidden("forget"), updated.hidden("retain")
        with torch.no_grad():
            forget_target_BTD = self.method.target(
                ForgetBatch(
                    batch.topic,
                    self.controls[batch.topic],
                    forget_BT,
                    frozen=lambda: frozen.hidden("forget"),
                    updated=lambda: forget_BTD,
                )
            )

        def facts() -> dict[str, Tensor]:
            with torch.no_grad():
                return {
                    "forget_norm": mean_norm(forget_BTD, forget_BT),
                    "retain_norm": mean_norm(retain_BTD, retain_BT),
                    "forget_cosine": mean_cosine(forget_BTD, forget_target_BTD, forget_BT),
                    "retain_drift": mean_norm(retain_BTD - frozen.hidden("retain"), retain_BT),
                }

        return Losses(
            representation_loss(forget_BTD, forget_target_BTD, forget_BT),
            representation_loss(retain_BTD, retain_target_BTD, retain_BT),
            alpha_of(self.alpha, batch.topic),
            facts,
        )

    def prepare(self, batch: Batch) -> None:
        """Begin to draw the noise of the next step."""
        self.rna.prepare(counted_positions(batch.retain.mask_BT, self.mask), batch.topic, batch.step)

    def state(self) -> dict[str, Tensor]:
        """Control vectors {"control.TOPIC": [D]}, and what the method measured."""
        return {f"{CONTROL}{topic}": u_D for topic, u_D in self.controls.items()} | self.method.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore the control vectors and what the method measured."""
        for topic, u_D in self.controls.items():
            u_D.copy_(state[f"{CONTROL}{topic}"])
        self.method.restore({key: value.to(u_D.device) for key, value in state.items()})
