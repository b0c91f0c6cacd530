"""Where the time of a training step goes: the GPU's operations, and how long it has nothing to do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from statistics import median
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from transformers import MistralConfig

from bench import shapes
from bench.gpu.device import build, release
from bench.gpu.results import Results
from bench.gpu.training import WARM, Clock
from unlearn.data.batches import Batch, batches
from unlearn.models.cutting import CutModel
from unlearn.training.loop import Schedule, train_variants

NU, STEPS, SHOWN = 0.03, 8, 15


def measure(results: Results, config: MistralConfig, device: torch.device, batch: int, length: int) -> None:
    """One variant with RNA; needs a GPU."""
    if device.type != "cuda":
        results.add("p", "profile", skipped="no GPU")
        return
    results.attempt("p", "one variant with RNA", lambda: _profile(config, device, batch, length))
    release(device)


def _profile(config: MistralConfig, device: torch.device, batch: int, length: int) -> dict[str, Any]:
    """Steps as they are, then as many with the profiler, which slows the host down but not the GPU's operations."""
    small = type(config)(**{**config.to_dict(), "num_hidden_layers": shapes.LAYER + 1})
    cut = CutModel(build(small, device, head=False), shapes.LAYER)
    points = shapes.variants(cut, (NU,), "master")
    first, last = WARM + STEPS, WARM + 2 * STEPS
    topic = shapes.equal_lengths(length, batch * last, config.vocab_size)

    def stream(start: int, end: int) -> Iterator[Batch]:
        return batches([topic], steps=end, batch_size=batch, pad_id=0, side="right", start=start)

    def run(stream: Iterable[Batch]) -> None:
        train_variants(cut, points, stream, mask_padding=False, schedule=Schedule(log=last))

    clock = Clock(device, ahead=1)
    run(clock.watch(stream(0, first)))
    step_s = median(clock.stop(first))
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        run(stream(first, last))
        torch.cuda.synchronize()
    rows = operations(found.key_averages())
    for row in rows[:SHOWN]:
        print(f"    {_ms(row):8.2f} ms a step  x{row.count // STEPS:<4} {row.key[:90]}", flush=True)
    return idle(rows, step_s) | {"operations": {row.key[:90]: _ms(row) for row in rows[:SHOWN]}}


def operations(averages: Iterable[Any]) -> list[Any]:
    """What ran on the GPU, the longest first. Rows of the host repeat the time of the kernels that they started."""
    rows = [r for r in averages if r.device_type == DeviceType.CUDA and not getattr(r, "is_user_annotation", False)]
    return sorted(rows, key=lambda row: -row.self_device_time_total)


def idle(rows: Iterable[Any], step_s: float) -> dict[str, float]:
    """How long the GPU works in a step, and the share of a step (without the profiler) in which it does not."""
    busy_ms = sum(_ms(row) for row in rows)
    return {"ms_a_step": 1e3 * step_s, "busy_ms_a_step": busy_ms, "idle_share": max(0.0, 1 - busy_ms / (1e3 * step_s))}


def _ms(row: Any) -> float:
    return row.self_device_time_total / 1e3 / STEPS
