"""The control directions projected out of the states at layer l.

Representation misdirection pushes states to a direction u for each topic, which is stored in the run's delta. If it
only covers what was to be forgotten, then h - (h . u) u uncovers it. Arditi et al. (2024) do this with the refusal
direction.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unlearn.attacks.attack import Change, Target
from unlearn.models.architectures import decoder_layers, hidden_of
from unlearn.models.delta import sha256


@dataclass(frozen=True)
class Projection(Change):
    """All topics' directions removed, at every token."""

    levels = (1,)

    def depends_on(self, target: Target) -> dict[str, Any]:
        """The layer and the directions."""
        controls = {topic: sha256(u_D) for topic, u_D in target.unlearning.controls.items()}
        return {"layer": target.unlearning.layer, "controls": controls}

    def obstacle(self, target: Target) -> str | None:
        """Not all methods have control vectors, and those of a damaged delta may be none."""
        controls = target.unlearning.controls
        if not controls:
            return "this run's delta has no control vectors that could be projected out"
        shape = (target.model.config.get_text_config().hidden_size,)
        for topic, u_D in controls.items():
            if u_D.shape != shape or not u_D.isfinite().all():
                return f"{topic} is not a vector of {shape[0]} finite numbers: the delta is damaged"
        return None

    def stages(self, target: Target) -> Generator[float, None, None]:
        """The model with a hook at layer l."""
        controls_DK = torch.stack(list(target.unlearning.controls.values()), dim=1).double().cpu()
        directions_DK = torch.linalg.qr(controls_DK).Q.float().to(target.model.device)
        layer = decoder_layers(target.model)[target.unlearning.layer]
        hook = layer.register_forward_hook(removing(directions_DK))
        try:
            yield 1
        finally:
            hook.remove()


def removing(directions_DK: Tensor) -> Any:
    """A forward hook behind a layer that takes these orthonormal directions out of its states."""

    def without_directions(_module: Any, _args: Any, output: Tensor | tuple[Any, ...]) -> Any:
        h_BTD = hidden_of(output)
        left_BTD = (h_BTD.float() - h_BTD.float() @ directions_DK @ directions_DK.T).to(h_BTD.dtype)
        return (left_BTD, *output[1:]) if isinstance(output, tuple) else left_BTD

    return without_directions
