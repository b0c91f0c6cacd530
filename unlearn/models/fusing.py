"""`model.compile=true`: torch.compile makes one kernel each of norms, rotary embeddings and gated activations.

As separate kernels they take a tenth of a training step and of an evaluation on a GPU (docs/benchmarks.md). Compiled
kernels round differently, so results with and without them differ by rounding. Matrix products are not compiled, so
that modules can still be cut, recorded and replayed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from unlearn.models.architectures import decoder_layers

ROTARY = "apply_rotary_pos_emb"
RECOMPILE_LIMIT = 64  # dynamo's limit of 8 is too low: dimensions, types and gradients differ between a run's phases
GATED = {"gate_proj", "up_proj", "down_proj", "act_fn"}  # the parts of an MLP that computes down(act(gate(x)) * up(x))


def fuse(model: PreTrainedModel) -> None:
    """Compile what can be fused in every decoder layer: each kind of module once, when it first runs.

    Other models in this process are not compiled: forward-mode derivatives do not work with compiled functions.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
    for module in decoder_layers(model).modules():
        forward = type(module).forward
        if "RMSNorm" in type(module).__name__:
            module.forward = partial(_compiled(forward), module)
        elif isinstance(forward, FunctionType) and ROTARY in forward.__code__.co_names:
            module.forward = partial(_with_compiled_rotary(forward), module)
        elif {name for name, _ in module.named_children()} == GATED:
            for gated in (_silu, _gelu):
                if _computes(module, gated):
                    module.forward = partial(_mlp, module, _compiled(gated))


@cache
def _with_compiled_rotary(forward: FunctionType) -> FunctionType:
    """A copy of an attention's `forward` that calls a compiled rotary embedding, a global function of its module."""
    names = {**forward.__globals__, ROTARY: _compiled(forward.__globals__[ROTARY])}
    copy = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
    copy.__kwdefaults__ = forward.__kwdefaults__
    return copy


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True)


# These take tensors only, so that a compiled function has little to check before each call.
def _silu(gate: Tensor, up: Tensor) -> Tensor:
    return nn.functional.silu(gate) * up


def _gelu(gate: Tensor, up: Tensor) -> Tensor:
    return nn.functional.gelu(gate, approximate="tanh") * up


def _mlp(module: Any, gated: Callable[..., Tensor], hidden: Tensor) -> Tensor:
    return module.down_proj(gated(module.gate_proj(hidden), module.up_proj(hidden)))


@torch.no_grad()
def _computes(mlp: Any, gated: Callable[..., Tensor]) -> bool:
    """Whether an MLP computes the same with this activation, to the bit."""
    weight = mlp.gate_proj.weight
    probe = torch.linspace(-1, 1, weight.shape[1], device=weight.device, dtype=weight.dtype)[None]
    return torch.equal(mlp(probe), _mlp(mlp, gated, probe))
