"""Training at the paper's shape: the published way, the same at its best, and ours; memory against the estimate."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from transformers import MistralConfig

from bench import shapes
from bench.baseline import train_plainly
from bench.gpu.device import build, gemm_rate, peak_gb, release, seconds_of, synchronize
from bench.gpu.results import Results
from unlearn.data.batches import Batch, batches
from unlearn.methods.rna import _noise
from unlearn.models.cutting import CutModel
from unlearn.training.cost import Parts, Shape, training_memory
from unlearn.training.loop import train

NU = 0.03
WARM = 3  # steps before the clock starts
MANY = len(shapes.NUS)


class Clock:
    """Seconds of all steps after the first `WARM`. `ahead` batches are read before the first step begins."""

    def __init__(self, device: torch.device, ahead: int) -> None:
        self._device, self._first = device, WARM + ahead
        self._start = 0.0

    def watch(self, stream: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches; the clock starts when the first one that counts is asked for."""
        for number, batch in enumerate(stream):
            if number == self._first:
                synchronize(self._device)
                self._start = time.perf_counter()
            yield batch

    def stop(self, steps: int) -> float:
        """Seconds a step."""
        synchronize(self._device)
        return (time.perf_counter() - self._start) / (steps - WARM)


def measure(results: Results, config: MistralConfig, device: torch.device, batch: int, lengths: list[int]) -> None:
    """Sections b and d."""
    rate = gemm_rate(config, device, batch * lengths[0])
    results.add("b", "GEMM", tflops=rate / 1e12)
    shape = Shape.of(config, shapes.LAYER)
    bench = _Bench(results, config, device, batch, rate, shape)
    bench.noise(lengths[0])
    for length in lengths:
        bench.ours(length, 1, nu=NU)
        bench.ours(length, 1, nu=0.0)
        bench.ours(length, MANY, nu=NU)
        if length == lengths[0]:
            bench.ours(length, 1, nu=NU, log_every=1)
            bench.ours(length, MANY, nu=0.0)
            bench.ours(length, 1, nu=NU, precision="model")
            bench.ours(length, MANY, nu=NU, precision="model")
    for length in lengths:
        bench.published(length, everything=False)
        bench.published(length, everything=True)


class _Bench:
    def __init__(
        self, results: Results, config: MistralConfig, device: torch.device, batch: int, rate: float, shape: Shape
    ) -> None:
        self.results, self.config, self.device, self.batch = results, config, device, batch
        self.rate, self.shape = rate, shape
        self.published_seconds: dict[int, float] = {}

    def parts(self, length: int) -> Parts:
        return dict.fromkeys(("forget", "retain"), (self.batch * length, length))

    def stream(self, length: int, steps: int) -> Iterator[Batch]:
        topic = shapes.equal_lengths(length, self.batch * steps, self.config.vocab_size)
        return batches([topic], steps=steps, batch_size=self.batch, pad_id=0, side="right")

    def figures(self, seconds: float, length: int, flops: int) -> dict[str, Any]:
        return {
            "seconds": seconds,
            "tokens_per_second": 2 * self.batch * length / seconds,
            "tflop": flops / 1e12,
            "share_of_gemm": flops / seconds / self.rate,
            "peak_gb": peak_gb(self.device),
        }

    def noise(self, length: int) -> None:
        """The host's draw of one step's noise."""
        counts = (length,) * self.batch
        draw = partial(_noise, counts, self.config.hidden_size, "x", seed=0)
        seconds = [seconds_of(partial(draw, step=step), self.device) for step in range(3)]
        self.results.add("b", "noise drawn on the host", seconds=min(seconds), threads=torch.get_num_threads())

    def ours(
        self, length: int, count: int, *, nu: float, precision: str = "master", log_every: int | None = None
    ) -> None:
        """Our loop; the peak of the allocator against the estimate is section d's."""
        name = f"ours, {count} variants, {length} tokens, {precision}, {'RNA' if nu else 'no RNA'}"
        name += "" if log_every is None else f", log_every={log_every}"
        figures = self.results.attempt("b", name, lambda: self._ours(length, count, nu, precision, log_every))
        release(self.device)
        if figures is None or figures["peak_gb"] is None:
            return
        bytes_each = torch.bfloat16.itemsize
        memory = training_memory(
            self.shape, 2 * self.batch * length, weight_bytes=bytes_each, precision=precision
        ).total(count)
        ratio = figures["peak_gb"] * 1e9 / memory
        self.results.add(
            "d", name, peak_gb=figures["peak_gb"], estimated_gb=memory / 1e9, ratio=ratio, passed=0.85 <= ratio <= 1
        )

    def _ours(self, length: int, count: int, nu: float, precision: str, log_every: int | None) -> dict[str, Any]:
        release(self.device)
        steps = WARM + (8 if count == 1 else 4)
        config = type(self.config)(**{**self.config.to_dict(), "num_hidden_layers": shapes.LAYER + 1})
        cut = CutModel(build(config, self.device, head=False), shapes.LAYER)
        nus = tuple(nu * k for k in range(1, count + 1))  # one draw serves them all
        points = shapes.variants(cut, nus, precision)
        clock = Clock(self.device, ahead=1)
        stream = clock.watch(self.stream(length, steps))
        train(cut, points, stream, mask_padding=False, log_every=log_every or steps, on_record=lambda *_: None)
        flops = self.shape.training_step(self.parts(length), count, frozen_forget=False)
        return self.figures(clock.stop(steps), length, flops)

    def published(self, length: int, *, everything: bool) -> None:
        """The baseline: two whole models. With `everything`, gradients of every parameter, as published."""
        name = f"published, {length} tokens, {'gradients of every parameter' if everything else 'at its best'}"
        self.results.attempt("b", name, lambda: self._published(length, everything))
        release(self.device)

    def _published(self, length: int, everything: bool) -> dict[str, Any]:
        release(self.device)
        steps = WARM + 3
        clock = Clock(self.device, ahead=0)
        models = build(self.config, self.device), build(self.config, self.device)
        train_plainly(*models, clock.watch(self.stream(length, steps)), NU, everything=everything)
        flops = self.shape.published_step(self.parts(length), frozen_forget=False)
        return self.figures(clock.stop(steps), length, flops)
