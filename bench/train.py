"""Time and memory of training against a plain baseline: `make bench`, about ten minutes on two CPU cores.

Every measurement is a process of its own, and the three of a round follow each other, because machines drift; figures
are medians over rounds of what was measured within one round.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import shapes
from bench.worker import BATCH, VOCABULARY
from unlearn.cost import Parts, Shape
from unlearn.data import Topic

LENGTH, STEPS, VARIANTS = 256, 4, len(shapes.NUS)
MORE_STEPS = 10  # of one variant, where all steps cost the same
RESULTS = Path(__file__).parent / "results.json"
KINDS = {
    "baseline": ["baseline"],
    "one": ["ours", "--variants", "1"],
    "many": ["ours", "--variants", str(VARIANTS)],
}


def measure(checkpoint: Path, *arguments: str, steps: int = STEPS) -> dict[str, Any]:
    """Run one worker."""
    command = [sys.executable, "-m", "bench.worker", str(checkpoint), *arguments, "--steps", str(steps)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    result = json.loads(done.stdout)
    return result | {"step": mean(result["seconds"])}


def largest_deviation(ours: dict[str, Any], baseline: dict[str, Any]) -> float:
    """Between the losses of the same point, relative, over all steps that both made."""
    pairs = zip(ours["losses"], baseline["losses"], strict=False)
    return max(abs(a - b) / abs(b) for x, y in pairs for a, b in zip(x, y, strict=True))


def compare(checkpoint: Path, shape: Shape, topic: Topic, rounds: int, lengths: str) -> dict[str, float]:
    """Baseline, one variant and many on the same inputs; speedups, their bounds, memory, roofline, agreement."""
    measured = []
    for number in range(rounds):
        print(f"{lengths} lengths, round {number + 1} of {rounds}", file=sys.stderr)
        measured.append(
            {
                kind: measure(checkpoint, *arguments, "--lengths", lengths, steps=_steps(kind, lengths))
                for kind, arguments in KINDS.items()
            }
        )

    def middle(value: Callable[[dict[str, Any]], float]) -> float:
        return median(value(r) for r in measured)

    batches = [_parts(topic, step, padded=False) for step in range(1, STEPS)]
    padded = [_parts(topic, step, padded=True) for step in range(1, STEPS)]
    baseline = mean(shape.published_step(p, frozen_forget=False) for p in padded)
    one, many = (mean(shape.training_step(p, n, frozen_forget=False) for p in batches) for n in (1, VARIANTS))
    return {
        "single_speedup": middle(lambda r: r["baseline"]["step"] / r["one"]["step"]),
        "single_bound": baseline / one,
        "per_point_speedup_14": middle(lambda r: VARIANTS * r["baseline"]["step"] / r["many"]["step"]),
        "per_point_bound_14": VARIANTS * baseline / many,
        "peak_memory_ratio": middle(lambda r: r["one"]["peak_bytes"] / r["baseline"]["peak_bytes"]),
        "peak_memory_ratio_14": middle(lambda r: r["many"]["peak_bytes"] / r["baseline"]["peak_bytes"]),
        "baseline_peak_gb": middle(lambda r: r["baseline"]["peak_bytes"]) / 1e9,
        "baseline_step_seconds": middle(lambda r: r["baseline"]["step"]),
        "step_seconds": middle(lambda r: r["one"]["step"]),
        "step_seconds_14": middle(lambda r: r["many"]["step"]),
        "flops_counted": one,
        "flops_counted_14": many,
        "flops_counted_baseline": baseline,
        "gemm_peak_flops": middle(lambda r: max(r[k]["gemm"] for k in KINDS)),
        "roofline_fraction": middle(lambda r: one / r["one"]["step"] / max(r[k]["gemm"] for k in KINDS)),
        "roofline_fraction_14": middle(lambda r: many / r["many"]["step"] / max(r[k]["gemm"] for k in KINDS)),
        "roofline_fraction_baseline": middle(
            lambda r: baseline / r["baseline"]["step"] / max(r[k]["gemm"] for k in KINDS)
        ),
        "largest_loss_deviation": max(
            largest_deviation(r[k], r["baseline"]) for r in measured for k in ("one", "many")
        ),
    }


def _steps(kind: str, lengths: str) -> int:
    return MORE_STEPS if kind == "one" and lengths == "equal" else STEPS


def _parts(topic: Topic, step: int, *, padded: bool) -> Parts:
    """Tokens of one step and the length of its sequences: as padded, or the real ones and their mean length."""
    parts = {}
    for name, documents in (("forget", topic.forget), ("retain", topic.retain)):
        lengths = [len(d) for d in documents[step * BATCH : (step + 1) * BATCH]]
        tokens = max(lengths) * BATCH if padded else sum(lengths)
        parts[name] = (tokens, max(lengths) if padded else sum(lengths) // BATCH)
    return parts


def growth(checkpoint: Path, doubled: Path) -> dict[str, float]:
    """One variant on a model with twice the layers above l, over the same on the model itself."""
    print("twice the layers above l", file=sys.stderr)
    pairs = [[measure(folder, *KINDS["one"], steps=6) for folder in (checkpoint, doubled)] for _ in range(3)]
    return {
        "time_ratio_twice_the_layers_above": median(b["step"] / a["step"] for a, b in pairs),
        "memory_ratio_twice_the_layers_above": median(b["peak_bytes"] / a["peak_bytes"] for a, b in pairs),
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
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="equal lengths only")
    args = parser.parse_args()
    console = Console(width=110)
    shape = Shape.of(shapes.small_mistral(), shapes.LAYER)
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint, doubled = Path(scratch, "model"), Path(scratch, "doubled")
        shapes.write_checkpoint(shapes.small_mistral(), checkpoint)
        documents = (LENGTH, BATCH * MORE_STEPS, VOCABULARY)
        results: dict[str, Any] = compare(checkpoint, shape, shapes.equal_lengths(*documents), args.rounds, "equal")
        console.print(table(f"Equal lengths: batch {BATCH} x {LENGTH} tokens, l = {shapes.LAYER}", results))
        if not args.quick:
            wmdp = compare(checkpoint, shape, shapes.wmdp_lengths(*documents), args.rounds, "wmdp")
            console.print(table("Lengths like those of WMDP and Wikitext-2 (padded by the baseline)", wmdp))
            shapes.write_checkpoint(shapes.small_mistral(32 + 24), doubled)
            results |= {"wmdp_lengths": wmdp, **growth(checkpoint, doubled)}
            console.print(
                f"Twice the layers above l: time x {results['time_ratio_twice_the_layers_above']:.2f}, "
                f"memory x {results['memory_ratio_twice_the_layers_above']:.2f}"
            )
    console.print(f"GEMM peak {results['gemm_peak_flops'] / 1e9:.0f} GFLOP/s")
    console.print(f"Largest deviation of a loss from the baseline's: {results['largest_loss_deviation']:.1e}")
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    if results["largest_loss_deviation"] > 1e-4:
        sys.exit("The losses are not those of the baseline.")


if __name__ == "__main__":
    main()
