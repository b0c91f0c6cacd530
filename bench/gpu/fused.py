"""Section f: what `model.compile=true` saves, in steps of one and of many variants, and in an evaluation."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec

import torch
from transformers import MistralConfig

from bench.gpu import evaluation, training
from bench.gpu.device import build, release
from bench.gpu.results import Results
from unlearn.models.fusing import fuse


def measure(
    results: Results, config: MistralConfig, device: torch.device, batch: int, length: int, questions: int
) -> None:
    """Each as it is, and compiled."""
    bench = training._Bench.begin(results, config, device, batch, length)
    for count in (1, training.MANY):
        for compiled in (False, True):
            run = partial(bench._ours, length, count, training.NU, "master", None, compiled)
            results.attempt("f", f"{count} variants, {length} tokens, {_name(compiled)}", run)
            release(device)
    if find_spec("lm_eval") is None:
        results.add("f", "evaluation", skipped="not measured: lm_eval is not installed")
        return
    model = build(config, device)
    for compiled in (False, True):
        if compiled:
            fuse(model)
        results.attempt("f", f"evaluation, {_name(compiled)}", lambda: evaluation.ours(model, questions, device))
        release(device)


def _name(compiled: bool) -> str:
    return "compiled" if compiled else "plain"
