"""Representation misdirection: Eq. 8, a forget loss plus alpha times a retain loss with RNA's noise on its target.

A placebo of RNA (`RNA.where`) has its noise elsewhere.

B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unlearn.data.batches import Batch
from unlearn.methods.inputs import ForgetBatch
from unlearn.methods.losses import counted_positions, mean_cosine, mean_norm, representation_loss
from unlearn.methods.noise import Augmentation, of_equal_norm
from unlearn.methods.objective import Alpha, Losses, View, alpha_of
from unlearn.methods.rna import FORGET_TARGET, GRADIENT, RETAIN_INPUT, RETAIN_TARGET

if TYPE_CHECKING:
    from unlearn.methods.misdirection import MisdirectionMethod

CONTROL = "control."


@dataclass(frozen=True)
class Misdirection:
    """Eq. 8 with the target of any method, and RNA on the retain target (or a placebo's noise elsewhere).

    `controls` holds each topic's control vector (float32 [D]) on the model's device, `measured` what the method
    measured (`ForgetBatch.measured_once`); for the others see `Setup`.
    """

    method: MisdirectionMethod
    controls: dict[str, Tensor]
    alpha: Alpha
    mask: str
    noise: Augmentation
    measured: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, batch: Batch, frozen: View, updated: View) -> Losses:
        """Forget and retain loss; for the log, norms, the cosine to the target and the drift of retain states."""
        forget_BT = counted_positions(batch.forget.mask_BT, self.mask)
        retain_BT = counted_positions(batch.retain.mask_BT, self.mask)
        with torch.no_grad():
            clean_BTD = frozen.hidden("retain")
            retain_target_BTD = self._noisy(RETAIN_TARGET, clean_BTD, retain_BT, batch)
        forget_BTD, retain_BTD = updated.hidden("forget"), self._retained(updated, clean_BTD, retain_BT, batch)
        with torch.no_grad():
            forget_target_BTD = self.method.target(
                ForgetBatch(
                    batch.topic,
                    self.controls[batch.topic],
                    forget_BT,
                    frozen=lambda: frozen.hidden("forget"),
                    updated=lambda: forget_BTD,
                    measured=self.measured,
                )
            )
            noisy_target_BTD = self._noisy(FORGET_TARGET, forget_target_BTD, forget_BT, batch)

        def facts() -> dict[str, Tensor]:
            with torch.no_grad():
                return {
                    "forget_norm": mean_norm(forget_BTD, forget_BT),
                    "retain_norm": mean_norm(updated.hidden("retain"), retain_BT),
                    "forget_cosine": mean_cosine(forget_BTD, forget_target_BTD, forget_BT),
                    "retain_drift": mean_norm(updated.hidden("retain") - clean_BTD, retain_BT),
                }

        return Losses(
            representation_loss(forget_BTD, noisy_target_BTD, forget_BT),
            representation_loss(retain_BTD, retain_target_BTD, retain_BT),
            alpha_of(self.alpha, batch.topic),
            facts,
            self._gradient_noise(retain_BTD, clean_BTD, retain_BT, batch),
        )

    def _noisy(self, place: str, states_BTD: Tensor, counted_BT: Tensor, batch: Batch) -> Tensor:
        """The states, with noise if this is where it goes."""
        here = self.noise.rna.where == place
        return self.noise(states_BTD, counted_BT, batch.topic, batch.step) if here else states_BTD

    def _retained(self, updated: View, clean_BTD: Tensor, retain_BT: Tensor, batch: Batch) -> Tensor:
        """The updated model's retain representation."""
        if self.noise.rna.where != RETAIN_INPUT or self.noise.rna.nu == 0:
            return updated.hidden("retain")
        none_BTD = torch.zeros_like(clean_BTD, dtype=torch.float32)
        return updated.hidden("retain", self.noise(none_BTD, retain_BT, batch.topic, batch.step))

    def _gradient_noise(
        self, retain_BTD: Tensor, clean_BTD: Tensor, retain_BT: Tensor, batch: Batch
    ) -> Callable[[Sequence[Tensor]], list[Tensor | None]] | None:
        """Noise on the gradient of the norm by which RNA would change it; None if none goes there."""
        if self.noise.rna.where != GRADIENT or self.noise.rna.nu == 0:
            return None

        def noise(weights: Sequence[Tensor]) -> list[Tensor | None]:
            noisy_BTD = self.noise(clean_BTD, retain_BT, batch.topic, batch.step)
            with_rna = representation_loss(retain_BTD, noisy_BTD, retain_BT)
            change = with_rna - representation_loss(retain_BTD, clean_BTD, retain_BT)
            by_rna = alpha_of(self.alpha, batch.topic) * change
            gradients = torch.autograd.grad(by_rna, list(weights), retain_graph=True, allow_unused=True)
            return of_equal_norm(gradients, self.noise.seed, batch.topic, batch.step)

        return noise

    def prepare(self, batch: Batch) -> None:
        """Begin to draw the noise of the next step."""
        part = batch.forget if self.noise.rna.where == FORGET_TARGET else batch.retain
        self.noise.prepare(counted_positions(part.mask_BT, self.mask), batch.topic, batch.step)

    def state(self) -> dict[str, Tensor]:
        """Control vectors {"control.TOPIC": [D]}, and what the method measured {"NAME.TOPIC": tensor}."""
        return {f"{CONTROL}{topic}": u_D for topic, u_D in self.controls.items()} | self.measured

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore the control vectors and what the method measured."""
        for topic, u_D in self.controls.items():
            u_D.copy_(state[f"{CONTROL}{topic}"])
        device = next(iter(self.controls.values())).device
        measured = {key: value.to(device) for key, value in state.items() if not key.startswith(CONTROL)}
        self.measured.clear()
        self.measured.update(measured)
