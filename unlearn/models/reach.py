"""How far trained matrices can move a layer's states.

Gemma 2 and 3, OLMo 2 and 3 and others normalise what the MLP returns before they add it to the states. Whatever becomes
of the matrix, it then moves a state by no more than this norm lets through.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from unlearn.models.architectures import hidden_of
from unlearn.models.replay import owners

FAR, FARTHER = 1e3, 1e4  # sizes of the matrix's output, in units of its own
BOUNDED = 2.0  # outputs that are ten times as large move states by less than this factor more


@torch.no_grad()
def reach(layer: nn.Module, parameters: Iterable[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> float | None:
    """The length of what these matrices can add to the layer's output; None if nothing bounds it.

    It is the median over tokens, with outputs of the matrices in random directions. The first token, whose state is
    often huge, is left out where there are others.

    Args:
        parameters: names of the matrices inside the layer.
        args, kwargs: what the layer is called with.
    """
    trained = owners(layer, parameters)

    def state_with(size: float) -> Tensor:
        hooks = [module.register_forward_hook(lambda _m, _a, output: _random(output, size)) for module in trained]
        try:
            return hidden_of(layer(*args, **kwargs)).float()
        finally:
            for hook in hooks:
                hook.remove()

    def added(size: float) -> float:
        added_BT = (state_with(size) - nothing_BTD).norm(dim=-1)
        return (added_BT[:, 1:] if added_BT.shape[1] > 1 else added_BT).median().item()

    nothing_BTD = state_with(0.0)
    far, farther = added(FAR), added(FARTHER)
    return farther if farther < BOUNDED * far else None


def _random(output: Any, size: float) -> Any:
    """Random numbers of the same form, `size` times as large."""
    hidden: Tensor = hidden_of(output)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(hidden.shape, generator=generator).to(hidden)
    drawn = noise * (size * hidden.float().std()).to(hidden)
    return (drawn, *output[1:]) if isinstance(output, (tuple, list)) else drawn
