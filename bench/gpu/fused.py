"""Section f: what fused kernels would save. Elementwise operations of a decoder layer, compiled by torch.compile.

The project does not do this: compiled kernels round differently, so that results would depend on the compiler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from transformers import MistralConfig
from transformers.models.mistral import modeling_mistral as mistral

from bench.gpu import evaluation, training
from bench.gpu.device import build, release
from bench.gpu.results import Results


@contextmanager
def fused() -> Iterator[None]:
    """Inside the block, Mistral's norm, rotary embedding and gated activation are one kernel each."""

    def gated(gate: Tensor, up: Tensor) -> Tensor:
        return torch.nn.functional.silu(gate) * up

    compiled: Callable[..., Tensor] = torch.compile(gated, dynamic=True)

    def mlp(self: Any, hidden: Tensor) -> Tensor:
        return self.down_proj(compiled(self.gate_proj(hidden), self.up_proj(hidden)))

    originals = mistral.MistralRMSNorm.forward, mistral.apply_rotary_pos_emb, mistral.MistralMLP.forward
    mistral.MistralRMSNorm.forward = torch.compile(originals[0], dynamic=True)
    mistral.apply_rotary_pos_emb = torch.compile(originals[1], dynamic=True)
    mistral.MistralMLP.forward = mlp
    try:
        yield
    finally:
        mistral.MistralRMSNorm.forward, mistral.apply_rotary_pos_emb, mistral.MistralMLP.forward = originals
        torch.compiler.reset()


def measure(
    results: Results, config: MistralConfig, device: torch.device, batch: int, length: int, questions: int
) -> None:
    """Steps of one and of many variants, and an evaluation; each as it is, and fused."""
    bench = training._Bench.begin(results, config, device, batch, length)
    for count in (1, training.MANY):
        for note, context in (("", nullcontext()), (", fused", fused())):
            with context:
                run = partial(bench._ours, length, count, training.NU, "master", None)
                results.attempt("f", f"{count} variants, {length} tokens{note}", run)
            release(device)
    if find_spec("lm_eval") is None:
        results.add("f", "evaluation", skipped="not measured: lm_eval is not installed")
        return
    model = build(config, device)
    for note, context in (("", nullcontext()), (", fused", fused())):
        with context:
            results.attempt("f", f"evaluation{note}", lambda: evaluation.ours(model, questions, device))
        release(device)
