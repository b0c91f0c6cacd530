"""The control directions projected out of the states at layer l.

Representation misdirection pushes states to a known direction u for each topic, which is in the run's delta. If what
was forgotten is only covered by it, h - (h . u) u uncovers it: what Arditi et al. (2024) do with the refusal direction.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unlearn.attacks.attack import Change, Victim
from unlearn.models.architectures import decoder_layers
from unlearn.models.delta import sha256


@dataclass(frozen=True)
class Projection(Change):
    """All topics' directions removed, at every token."""

    levels = (1,)

    def uses(self, victim: Victim) -> dict[str, Any]:
        """The layer and the directions."""
        return {"layer": victim.layer, "controls": {topic: sha256(u_D) for topic, u_D in victim.controls.items()}}

    def why_not(self, victim: Victim) -> str | None:
        """Methods on likelihoods have no control vectors."""
        return None if victim.controls else "this run's method has no control vectors to be projected out"

    def stages(self, victim: Victim) -> Generator[float, None, None]:
        """One."""
        directions_DK, _ = torch.linalg.qr(torch.stack(list(victim.controls.values()), dim=1).double().cpu())
        directions_DK = directions_DK.float().to(victim.model.device)

        def without(_module: Any, _args: Any, output: Tensor | tuple[Any, ...]) -> Any:
            h_BTD = output[0] if isinstance(output, tuple) else output
            left_BTD = (h_BTD.float() - h_BTD.float() @ directions_DK @ directions_DK.T).to(h_BTD.dtype)
            return (left_BTD, *output[1:]) if isinstance(output, tuple) else left_BTD

        hook = decoder_layers(victim.model)[victim.layer].register_forward_hook(without)
        try:
            yield 1
        finally:
            hook.remove()
