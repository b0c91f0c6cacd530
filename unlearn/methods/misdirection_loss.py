"""Representation misdirection: Eq. 8, a forget loss plus alpha times a retain loss with RNA's noise on its target.

B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unlearn.data.batches import Batch
from unlearn.methods.inputs import ForgetBatch
from unlearn.methods.losses import counted_positions, mean_cosine, mean_norm, representation_loss
from unlearn.methods.noise import Augmentation
from unlearn.methods.objective import Alpha, Losses, View, alpha_of

if TYPE_CHECKING:
    from unlearn.methods.misdirection import MisdirectionMethod

CONTROL = "control."


@dataclass(frozen=True)
class Misdirection:
    """Eq. 8 with the target of any method, and RNA on the retain target.

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
            retain_target_BTD = self.noise(frozen.hidden("retain"), retain_BT, batch.topic, batch.step)
        forget_BTD, retain_BTD = updated.hidden("forget"), updated.hidden("retain")
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
        self.noise.prepare(counted_positions(batch.retain.mask_BT, self.mask), batch.topic, batch.step)

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
