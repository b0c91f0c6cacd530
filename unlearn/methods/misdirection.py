"""Representation misdirection: Eq. 8, a forget loss plus alpha times a retain loss with RNA's noise on its target.

B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from unlearn.data.batches import Batch
from unlearn.methods.losses import counted_positions, mean_cosine, mean_norm, representation_loss
from unlearn.methods.method import ForgetBatch, Method
from unlearn.methods.objective import Losses, View

CONTROL = "control."


@dataclass(frozen=True)
class Misdirection:
    """Eq. 8 with the target of any method, and RNA on the retain target.

    `controls` holds each topic's control vector (float32 [D]) on the model's device; `mask` says which positions
    the losses count (see `losses.counted_positions`); `augment` is RNA: from the frozen retain representation
    [B, T, D], its counted positions [B, T], the topic and the step to the retain target [B, T, D]. `draw_ahead` is
    given the counted positions, the topic and the step of the next batch, so that RNA can draw its noise ahead.
    """

    method: Method
    controls: dict[str, Tensor]
    alpha: float
    mask: str
    augment: Callable[[Tensor, Tensor, str, int], Tensor]
    draw_ahead: Callable[[Tensor, str, int], None] = lambda *_: None

    def __call__(self, batch: Batch, frozen: View, updated: View) -> Losses:
        """Forget and retain loss; for the log, norms, the cosine to the target and the drift of retain states."""
        forget_BT = counted_positions(batch.forget.mask_BT, self.mask)
        retain_BT = counted_positions(batch.retain.mask_BT, self.mask)
        with torch.no_grad():
            retain_target_BTD = self.augment(frozen.hidden("retain"), retain_BT, batch.topic, batch.step)
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
            self.alpha,
            facts,
        )

    def prepare(self, batch: Batch) -> None:
        """Begin to draw the noise of the next step."""
        self.draw_ahead(counted_positions(batch.retain.mask_BT, self.mask), batch.topic, batch.step)

    def state(self) -> dict[str, Tensor]:
        """Control vectors {"control.TOPIC": [D]}, and what the method measured."""
        return {f"{CONTROL}{topic}": u_D for topic, u_D in self.controls.items()} | self.method.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore the control vectors and what the method measured."""
        for topic, u_D in self.controls.items():
            u_D.copy_(state[f"{CONTROL}{topic}"])
        self.method.restore({key: value.to(u_D.device) for key, value in state.items()})
