"""Where the time of a training step goes: the GPU's operations, and how long it has nothing to do."""

from __future__ import annotations

from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import MistralConfig

from bench import shapes
from bench.gpu.device import build, release, seconds_of
from bench.gpu.results import Results
from unlearn.data.batches import batches
from unlearn.models.cutting import CutModel
from unlearn.training.loop import train

NU, STEPS = 0.03, 4


def measure(results: Results, config: MistralConfig, device: torch.device, batch: int, length: int) -> None:
    """One variant with RNA; needs a GPU."""
    if device.type != "cuda":
        results.add("p", "profile", skipped="no GPU")
        return
    results.attempt("p", "one variant with RNA", lambda: _profile(config, device, batch, length))
    release(device)


def _profile(config: MistralConfig, device: torch.device, batch: int, length: int) -> dict[str, Any]:
    small = type(config)(**{**config.to_dict(), "num_hidden_layers": shapes.LAYER + 1})
    cut = CutModel(build(small, device, head=False), shapes.LAYER)
    points = shapes.variants(cut, (NU,), "master")
    topic = shapes.equal_lengths(length, 2 * batch * STEPS, config.vocab_size)

    def run(start: int) -> None:
        stream = batches([topic], steps=start + STEPS, batch_size=batch, pad_id=0, side="right", start=start)
        train(cut, points, stream, mask_padding=False, log_every=100, on_record=lambda *_: None)

    run(0)
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        seconds = seconds_of(lambda: run(STEPS), device)
    rows = sorted(found.key_averages(), key=lambda row: -row.self_device_time_total)
    for row in rows[:18]:
        print(f"    {row.self_device_time_total / 1e3 / STEPS:8.2f} ms a step  x{row.count // STEPS:<4} {row.key[:90]}")
    busy = sum(row.self_device_time_total for row in rows) / 1e6
    return {"ms_a_step": 1e3 * seconds / STEPS, "busy_ms_a_step": 1e3 * busy / STEPS}
