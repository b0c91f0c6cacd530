"""Time and memory of training against a plain baseline: `make bench`, about ten minutes on two CPU cores.

Every contestant is a process of its own. They step in turn, because machines drift: each figure is the median over
rounds of what was measured within one round.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import mean, median
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import shapes
from bench.flops import Parts, likelihood_step, published_likelihood_step, published_step, training_step
from bench.worker import BATCH, VOCABULARY, gemm_peak
from unlearn.data.corpora import Topic
from unlearn.training.cost import Shape

LENGTH, VARIANTS = 256, len(shapes.NUS)
RESULTS = Path(__file__).parent / "results.json"
KINDS = {
    "baseline": ["baseline"],
    "one": ["ours", "--variants", "1"],
    "many": ["ours", "--variants", str(VARIANTS)],
}


class Worker:
    """A `bench.worker` process that steps when it is told to."""

    def __init__(self, checkpoint: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "bench.worker", str(checkpoint), *arguments]
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the process
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def step(self) -> float:
        """Seconds of one step."""
        assert self._process.stdin is not None
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        return self._answer()["seconds"]

    def finish(self) -> dict[str, Any]:
        """Losses and peak memory."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            raise RuntimeError(self._errors.read())
        return json.loads(line)


def largest_deviation(ours: dict[str, Any], baseline: dict[str, Any]) -> float:
    """Between the losses of the same point, over all steps that both made: relative, or to 0.01 where they are smaller.

    A divergence close to zero is a difference of large numbers.
    """
    pairs = zip(ours["losses"], baseline["losses"], strict=False)
    return max(abs(a - b) / max(abs(b), 1e-2) for x, y in pairs for a, b in zip(x, y, strict=True))


def counted(shape: Shape, method: str, parts: Parts, variants: int) -> int:
    """The fewest FLOPs of a step, each variant with a nu of its own."""
    if shapes.METHODS[method][0].needs_logits:
        return likelihood_step(shape, parts, variants, reference=["forget"], noises=variants)
    return training_step(shape, parts, variants, frozen_forget=False)


def counted_baseline(shape: Shape, method: str, parts: Parts) -> int:
    """FLOPs of a step of the baseline."""
    if shapes.METHODS[method][0].needs_logits:
        return published_likelihood_step(shape, parts, reference=["forget", "retain"])
    return published_step(shape, parts, frozen_forget=False)


def compare(
    checkpoint: Path, shape: Shape, topic: Topic, rounds: int, lengths: str, method: str = "rmu"
) -> dict[str, float]:
    """Baseline, one variant and many on the same inputs; speedups, their bounds, memory, roofline, agreement.

    Where all steps cost the same, one variant makes three a round, so that it is timed as well as the others.
    """
    steps = {"baseline": 1, "one": 3 if lengths == "equal" else 1, "many": 1}
    with ExitStack() as stack:
        workers = {
            k: stack.enter_context(Worker(checkpoint, *a, "--lengths", lengths, "--method", method))
            for k, a in KINDS.items()
        }
        for worker in workers.values():
            worker.step()  # a step to warm up, not timed
        measured = []
        for number in range(rounds):
            print(f"{lengths} lengths, round {number + 1} of {rounds}", file=sys.stderr)
            seconds = {k: mean(w.step() for _ in range(steps[k])) for k, w in workers.items()}
            measured.append(seconds | {"gemm": gemm_peak()})
        ends = {kind: worker.finish() for kind, worker in workers.items()}

    if lengths != "equal":  # rounds differ in length: one round of mean values
        measured = [{k: mean(r[k] for r in measured) for k in measured[0]}]

    def middle(value: Callable[[dict[str, float]], float]) -> float:
        return median(value(r) for r in measured)

    real, padded = ([_parts(topic, step, padded=p) for step in range(1, rounds + 1)] for p in (False, True))
    baseline = mean(counted_baseline(shape, method, p) for p in padded)
    one, many = (mean(counted(shape, method, p, n) for p in real) for n in (1, VARIANTS))
    return {
        "single_speedup": middle(lambda r: r["baseline"] / r["one"]),
        "single_bound": baseline / one,
        "per_point_speedup_14": middle(lambda r: VARIANTS * r["baseline"] / r["many"]),
        "per_point_bound_14": VARIANTS * baseline / many,
        "peak_memory_ratio": ends["one"]["peak_bytes"] / ends["baseline"]["peak_bytes"],
        "peak_memory_ratio_14": ends["many"]["peak_bytes"] / ends["baseline"]["peak_bytes"],
        "baseline_peak_gb": ends["baseline"]["peak_bytes"] / 1e9,
        "baseline_step_seconds": middle(lambda r: r["baseline"]),
        "step_seconds": middle(lambda r: r["one"]),
        "step_seconds_14": middle(lambda r: r["many"]),
        "flops_counted": one,
        "flops_counted_14": many,
        "flops_counted_baseline": baseline,
        "gemm_peak_flops": middle(lambda r: r["gemm"]),
        "roofline_fraction": middle(lambda r: one / r["one"] / r["gemm"]),
        "roofline_fraction_14": middle(lambda r: many / r["many"] / r["gemm"]),
        "roofline_fraction_baseline": middle(lambda r: baseline / r["baseline"] / r["gemm"]),
        "largest_loss_deviation": max(largest_deviation(ends[k], ends["baseline"]) for k in ("one", "many")),
    }


def _parts(topic: Topic, step: int, *, padded: bool) -> Parts:
    """Tokens of one step and the length of its sequences: as padded, or the real ones and their mean length."""
    parts = {}
    for name, documents in (("forget", topic.forget), ("retain", topic.retain)):
        lengths = [len(d) for d in documents[step * BATCH : (step + 1) * BATCH]]
        tokens = max(lengths) * BATCH if padded else sum(lengths)
        parts[name] = (tokens, max(lengths) if padded else sum(lengths) // BATCH)
    return parts


def growth(checkpoint: Path, doubled: Path, rounds: int) -> dict[str, float]:
    """One variant on a model with twice the layers above l, over the same on the model itself."""
    print("twice the layers above l", file=sys.stderr)
    with Worker(checkpoint, *KINDS["one"]) as a, Worker(doubled, *KINDS["one"]) as b:
        pairs = [(a.step(), b.step()) for _ in range(rounds + 1)][1:]
        ends = a.finish(), b.finish()
    return {
        "time_ratio_twice_the_layers_above": median(y / x for x, y in pairs),
        "memory_ratio_twice_the_layers_above": ends[1]["peak_bytes"] / ends[0]["peak_bytes"],
    }


def table(title: str, r: dict[str, float]) -> Table:
    """What a reader wants to see of one comparison."""
    found = Table("", "baseline", "ours, 1 variant", f"ours, {VARIANTS} variants", title=title)
    found.add_row(
        "seconds a step", *(f"{r[k]:.2f}" for k in ("baseline_step_seconds", "step_seconds", "step_seconds_14"))
    )
    found.add_row("speedup a point", "1", f"{r['single_speedup']:.2f}", f"{r['per_point_speedup_14']:.2f}")
    found.add_row("... bound by FLOPs", "", f"{r['single_bound']:.2f}", f"{r['per_point_bound_14']:.2f}")
    ratios = (r["peak_memory_ratio"], r["peak_memory_ratio_14"])
    found.add_row("peak memory", f"{r['baseline_peak_gb']:.2f} GB", *(f"x {ratio:.2f}" for ratio in ratios))
    fractions = ("roofline_fraction_baseline", "roofline_fraction", "roofline_fraction_14")
    found.add_row("counted FLOPs / (time x GEMM peak)", *(f"{r[k]:.2f}" for k in fractions))
    flops = ("flops_counted_baseline", "flops_counted", "flops_counted_14")
    found.add_row("counted GFLOP a step", *(f"{r[k] / 1e9:.0f}" for k in flops))
    return found


def main() -> None:
    """Measure, print, write `bench/results.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--method", choices=tuple(shapes.METHODS), default="rmu", help="npo: equal lengths only")
    parser.add_argument("--quick", action="store_true", help="equal lengths only")
    args = parser.parse_args()
    console = Console(width=110)
    shape = Shape.of(shapes.small_mistral(), shapes.LAYER)
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint, doubled = Path(scratch, "model"), Path(scratch, "doubled")
        shapes.write_checkpoint(shapes.small_mistral(), checkpoint)
        documents = (LENGTH, BATCH * 64, VOCABULARY)
        results: dict[str, Any] = compare(
            checkpoint, shape, shapes.equal_lengths(*documents), args.rounds, "equal", args.method
        )
        console.print(table(f"Equal lengths: batch {BATCH} x {LENGTH} tokens, l = {shapes.LAYER}", results))
        if not args.quick and args.method == "rmu":
            wmdp = compare(checkpoint, shape, shapes.wmdp_lengths(*documents), args.rounds, "wmdp")
            console.print(table("Lengths like those of WMDP and Wikitext-2 (padded by the baseline)", wmdp))
            shapes.write_checkpoint(shapes.small_mistral(32 + 24), doubled)
            results |= {"wmdp_lengths": wmdp, **growth(checkpoint, doubled, args.rounds)}
            console.print(
                f"Twice the layers above l: time x {results['time_ratio_twice_the_layers_above']:.2f}, "
                f"memory x {results['memory_ratio_twice_the_layers_above']:.2f}"
            )
    console.print(f"GEMM peak {results['gemm_peak_flops'] / 1e9:.0f} GFLOP/s")
    console.print(f"Largest deviation of a loss from the baseline's: {results['largest_loss_deviation']:.1e}")
    results_file = RESULTS if args.method == "rmu" else RESULTS.with_stem(f"results_{args.method}")
    results_file.write_text(json.dumps(results, indent=2) + "\n")
    if results["largest_loss_deviation"] > 1e-4:
        sys.exit("The losses are not those of the baseline.")


if __name__ == "__main__":
    main()
