"""Section n: NPO with KL and RNA, which needs the whole model: seconds a step, and memory against the estimate."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from transformers import MistralConfig

from bench import shapes
from bench.baseline import train_plainly
from bench.flops import likelihood_step, published_likelihood_step
from bench.gpu.device import build, dtype_of, release
from bench.gpu.results import Results
from bench.gpu.training import NU, WARM, Clock, _Bench
from unlearn.models.cutting import CutModel
from unlearn.training.cost import likelihood_memory
from unlearn.training.loop import Schedule, train_variants

STEPS = WARM + 4
CARD_GB = 24.0  # of the smaller cards, for one variant of a 7B model whose activations are recomputed
POINTS = 4  # noise scales in one process; each needs a reference of its own


def measure(results: Results, config: MistralConfig, device: torch.device, batch: int, length: int) -> None:
    """Ours with activations kept and recomputed, some noise scales together, and the published way."""
    bench = _Bench.begin(results, config, device, batch, length)
    for count, recompute in ((1, False), (1, True), (POINTS, True)):
        name = f"ours, NPO, {count} variants, {length} tokens, {'recomputed' if recompute else 'kept'}"
        figures = results.attempt("n", name, partial(_ours, bench, length, count, recompute))
        release(device)
        if figures is not None:
            _memory(bench, name, length, count, recompute, figures["peak_gb"])
    results.attempt("n", f"published, NPO, {length} tokens", partial(_published, bench, length))
    release(device)


def _ours(bench: _Bench, length: int, count: int, recompute: bool) -> dict[str, Any]:
    release(bench.device)
    cut = CutModel(build(bench.config, bench.device), shapes.LAYER)
    points = shapes.variants(cut, shapes.NUS[:count], method="npo")
    clock = Clock(bench.device, ahead=1)
    stream = clock.watch(bench.stream(length, STEPS))
    train_variants(cut, points, stream, mask_padding=False, schedule=Schedule(log=STEPS), recompute=recompute)
    flops = likelihood_step(
        bench.shape, bench.parts(length), count, reference=["forget"], noises=count, recompute=recompute
    )
    return bench.figures(clock.stop(STEPS), length, flops)


def _memory(bench: _Bench, name: str, length: int, count: int, recompute: bool, peak: float | None) -> None:
    """The allocator's peak against the estimate."""
    need = likelihood_memory(
        bench.shape,
        2 * bench.batch * length,
        weight_bytes=dtype_of(bench.device).itemsize,
        precision="master",
        recompute=recompute,
    )
    bounded = bench.shape.hidden == 4096 and (bench.batch, length, count, recompute) == (4, 512, 1, True)
    bench.judge_memory("n", name, need.total(count) / 1e9, peak, CARD_GB if bounded else None)


def _published(bench: _Bench, length: int) -> dict[str, Any]:
    """Two whole models, gradients of every parameter, whole log-probabilities in float32."""
    release(bench.device)
    clock = Clock(bench.device, ahead=0)
    models = build(bench.config, bench.device), build(bench.config, bench.device)
    train_plainly(*models, clock.watch(bench.stream(length, STEPS)), NU, method="npo")
    flops = published_likelihood_step(bench.shape, bench.parts(length), reference=["forget", "retain"])
    return bench.figures(clock.stop(STEPS), length, flops)
