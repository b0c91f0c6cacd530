"""Norms and gated activations of decoder layers as one kernel each, by torch.compile: `model.compile=true`.

On a GPU they take a tenth of a training step and of an evaluation as separate kernels (docs/benchmarks.md). Compiled
ones round differently, so a model's results with and without them differ by rounding. The matrix products stay as they
are, so that modules can be cut, recorded and replayed as before.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from unlearn.models.architectures import decoder_layers

GATED = {"gate_proj", "up_proj", "down_proj", "act_fn"}  # the parts of an MLP that computes down(act(gate(x)) * up(x))


def fuse(model: PreTrainedModel) -> None:
    """Compile what can be fused in every decoder layer, each kind of module once, when it first runs."""
    gated: dict[str, Callable[..., Tensor]] = {}
    for module in decoder_layers(model).modules():
        if "RMSNorm" in type(module).__name__:
            module.forward = partial(_compiled(type(module).forward), module)
        elif _is_gated(module):
            # A copy of the activation: the MLP's own is recorded and replayed, which must not be compiled.
            activation: Any = copy(module.act_fn)
            compiled = gated.setdefault(repr(activation), _compiled(partial(_gated, activation)))
            module.forward = partial(_mlp, module, compiled)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True)


def _gated(activation: nn.Module, gate: Tensor, up: Tensor) -> Tensor:
    return activation(gate) * up


def _mlp(module: Any, gated: Callable[..., Tensor], hidden: Tensor) -> Tensor:
    return module.down_proj(gated(module.gate_proj(hidden), module.up_proj(hidden)))


@torch.no_grad()
def _is_gated(module: Any) -> bool:
    """Whether a module is an MLP of this kind, by its parts and by what it computes."""
    if {name for name, _ in module.named_children()} != GATED:
        return False
    weight = module.gate_proj.weight
    probe = torch.linspace(-1, 1, weight.shape[1], device=weight.device, dtype=weight.dtype)[None]
    return torch.equal(module(probe), _mlp(module, partial(_gated, module.act_fn), probe))
