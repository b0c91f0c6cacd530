"""Training at the paper's shape: the published way, the same at its best, and ours; memory against the estimate."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import pairwise
from statistics import mean, median
from typing import Any

import torch
from transformers import MistralConfig

from bench import shapes
from bench.baseline import train_plainly
from bench.flops import Parts, forward, published_step, training_step
from bench.gpu.device import build, dtype_of, gemm_rate, peak_gb, release, seconds_of, synchronize
from bench.gpu.results import Results
from unlearn.arguments import SPAN
from unlearn.data.batches import Batch, batches
from unlearn.methods.noise import _noise
from unlearn.models.cutting import CutModel
from unlearn.training.cost import Shape, training_memory
from unlearn.training.loop import Schedule, train_variants

NU = 0.03
WARM = 3  # steps before the clock starts
MANY = len(shapes.NUS)
# Variants and precision -> what they may take at Zephyr's shape with batches of 4 x 512 tokens.
BOUNDS_GB = {(1, "master"): 12.0, (1, "model"): 12.0, (MANY, "master"): 40.0, (MANY, "model"): 24.0}


class Clock:
    """Seconds of each step after the first `WARM`. `ahead` batches are read before the first step begins.

    On a GPU a step begins where its first operation stands in the queue, so that the host waits for nothing.
    """

    def __init__(self, device: torch.device, ahead: int) -> None:
        self._device, self._ahead = device, ahead
        self._marks: list[Any] = []

    def watch(self, stream: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches; a mark is set where one that counts is asked for, and where there are no more."""
        for number, batch in enumerate(stream):
            if number >= WARM + self._ahead:
                self._mark()
            yield batch
        self._mark()

    def stop(self, steps: int) -> list[float]:
        """Seconds of the steps from the first that counts to the last, of `steps` in all."""
        if self._ahead:
            self._mark()
        synchronize(self._device)
        assert len(self._marks) == steps - WARM + 1, "training ended early"
        return [self._between(*pair) for pair in pairwise(self._marks)]

    def _mark(self) -> None:
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def _between(self, begin: Any, end: Any) -> float:
        return begin.elapsed_time(end) / 1e3 if self._device.type == "cuda" else end - begin


def at_its_best_step(shape: Shape, parts: Parts) -> int:
    """FLOPs of a published step that computes gradients of the three matrices only: forward as published."""
    updated = training_step(shape, parts, 1, frozen_forget=False) - training_step(shape, parts, 0, frozen_forget=False)
    flops = published_step(shape, parts, frozen_forget=False) + updated
    for tokens, length in parts.values():
        f = forward(shape, tokens, length)
        again = (
            2 * shape.trained_active * tokens + (SPAN - 1) * f
        )  # the variant's forward pass is part of the whole one
        flops -= (shape.layer + 1) * 2 * f + again
    return flops


def measure(results: Results, config: MistralConfig, device: torch.device, batch: int, lengths: list[int]) -> None:
    """Sections b and d."""
    bench = _Bench.begin(results, config, device, batch, lengths[0])
    bench.noise(lengths[0])
    for length in lengths:
        bench.ours(length, 1, nu=NU)
        bench.ours(length, 1, nu=0.0)
        bench.ours(length, MANY, nu=NU)
        bench.ours(length, MANY, nu=0.0)
        if length == lengths[0]:
            bench.ours(length, 1, nu=NU, log_every=1)
            bench.ours(length, 1, nu=NU, precision="model")
            bench.ours(length, MANY, nu=NU, precision="model")
    for length in lengths:
        bench.published(length, everything=False)
        bench.published(length, everything=True)


def measure_memory(results: Results, config: MistralConfig, device: torch.device, batch: int, length: int) -> None:
    """Section d without the rest of b: the runs whose memory has a bound."""
    bench = _Bench.begin(results, config, device, batch, length)
    for count, precision in BOUNDS_GB:
        bench.ours(length, count, nu=NU, precision=precision)


class _Bench:
    def __init__(
        self, results: Results, config: MistralConfig, device: torch.device, batch: int, rate: float, shape: Shape
    ) -> None:
        self.results, self.config, self.device, self.batch = results, config, device, batch
        self.rate, self.shape = rate, shape

    @classmethod
    def begin(cls, results: Results, config: MistralConfig, device: torch.device, batch: int, length: int) -> _Bench:
        """Measure the GEMM rate first: shares are shares of it."""
        rate = gemm_rate(config, device, batch * length)
        results.add("b", "GEMM", tflops=rate / 1e12)
        return cls(results, config, device, batch, rate, Shape.of(config, shapes.LAYER))

    def parts(self, length: int) -> Parts:
        return dict.fromkeys(("forget", "retain"), (self.batch * length, length))

    def stream(self, length: int, steps: int) -> Iterator[Batch]:
        topic = shapes.equal_lengths(length, self.batch * steps, self.config.vocab_size)
        return batches([topic], steps=steps, batch_size=self.batch, pad_id=0, side="right")

    def figures(self, times: list[float], length: int, flops: int) -> dict[str, Any]:
        seconds = median(times)
        return {
            "seconds": seconds,
            "mean_seconds": mean(times),
            "steps": len(times),
            "tokens_per_second": 2 * self.batch * length / seconds,
            "tflop": flops / 1e12,
            "share_of_gemm": flops / seconds / self.rate,
            "peak_gb": peak_gb(self.device),
        }

    def noise(self, length: int) -> None:
        """The host's draw of one step's noise."""
        counts = (length,) * self.batch
        draws = [
            partial(_noise, counts, self.config.hidden_size, (0, "x", step, "token", "retain")) for step in range(3)
        ]
        seconds = [seconds_of(draw, self.device) for draw in draws]
        self.results.add("b", "noise drawn on the host", seconds=min(seconds), threads=torch.get_num_threads())

    def ours(
        self, length: int, count: int, *, nu: float, precision: str = "master", log_every: int | None = None
    ) -> None:
        """Our loop; the peak of the allocator against the estimate is section d's."""
        name = f"ours, {count} variants, {length} tokens, {precision}, {'RNA' if nu else 'no RNA'}"
        name += "" if log_every is None else f", log_every={log_every}"
        figures = self.results.attempt("b", name, lambda: self._ours(length, count, nu, precision, log_every))
        release(self.device)
        if figures is not None:
            self.memory(name, length, count, precision, figures["peak_gb"])

    def memory(self, name: str, length: int, count: int, precision: str, peak: float | None) -> None:
        """Section d: the allocator's peak against the estimate, which must be at most 15 % too high and never too low.

        At the paper's shape and batch also against a bound.
        """
        tokens = 2 * self.batch * length
        itemsize = dtype_of(self.device).itemsize
        estimate = training_memory(self.shape, tokens, weight_bytes=itemsize, precision=precision).total(count) / 1e9
        bounded = self.shape.hidden == 4096 and tokens == 2 * 4 * 512
        self.judge_memory("d", name, estimate, peak, BOUNDS_GB[count, precision] if bounded else None)

    def judge_memory(self, section: str, name: str, estimate: float, peak: float | None, bound: float | None) -> None:
        """Add a row: the peak must be at most 15 % below the estimate, never above it, nor above the bound if any."""
        if peak is None:
            self.results.add(section, name, estimated_gb=estimate, skipped="not measured: no GPU")
            return
        ratio = peak / estimate
        figures = {"peak_gb": peak, "estimated_gb": estimate, "ratio": ratio}
        passed = 0.85 <= ratio <= 1
        if bound is not None:
            figures["bound_gb"] = bound
            passed = passed and peak <= bound
        self.results.add(section, name, **figures, passed=passed)

    def _ours(self, length: int, count: int, nu: float, precision: str, log_every: int | None) -> dict[str, Any]:
        release(self.device)
        steps = WARM + (8 if count == 1 else 5)
        config = type(self.config)(**{**self.config.to_dict(), "num_hidden_layers": shapes.LAYER + 1})
        cut = CutModel(build(config, self.device, head=False), shapes.LAYER)
        nus = tuple(nu * k for k in range(1, count + 1))  # one draw serves them all
        points = shapes.variants(cut, nus, precision)
        clock = Clock(self.device, ahead=1)
        stream = clock.watch(self.stream(length, steps))
        train_variants(cut, points, stream, mask_padding=False, schedule=Schedule(log=log_every or steps))
        flops = training_step(self.shape, self.parts(length), count, frozen_forget=False)
        return self.figures(clock.stop(steps), length, flops)

    def published(self, length: int, *, everything: bool) -> None:
        """The baseline: two whole models. With `everything`, gradients of every parameter, as published."""
        name = f"published, {length} tokens, {'gradients of every parameter' if everything else 'at its best'}"
        self.results.attempt("b", name, lambda: self._published(length, everything))
        release(self.device)

    def _published(self, length: int, everything: bool) -> dict[str, Any]:
        release(self.device)
        steps = WARM + 5
        clock = Clock(self.device, ahead=0)
        models = build(self.config, self.device), build(self.config, self.device)
        train_plainly(*models, clock.watch(self.stream(length, steps)), NU, everything=everything)
        parts = self.parts(length)
        whole = published_step(self.shape, parts, frozen_forget=False)
        flops = whole if everything else at_its_best_step(self.shape, parts)
        return self.figures(clock.stop(steps), length, flops)
