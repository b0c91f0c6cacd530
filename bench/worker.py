"""One contestant of `make bench`, in a process of its own.

`python -m bench.worker CHECKPOINT baseline|ours` makes one step for every line on its standard input and answers with
the seconds that it took; at the end of the input it prints losses and peak memory.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench import shapes
from bench.baseline import train_plainly
from unlearn.data.batches import Batch, batches
from unlearn.models.cutting import CutModel
from unlearn.models.loading import Source, load_up_to, load_whole
from unlearn.training.loop import train_variants

NU = 0.03  # the point whose losses are compared
BATCH, VOCABULARY = 4, 32000


def peak_bytes() -> int:
    """Largest resident size of this process so far; `ru_maxrss` would begin with that of the parent."""
    [line] = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def gemm_peak(seconds: float = 1.5) -> float:
    """FLOP/s, median over calls, of the fastest of a few float32 matrix products."""
    found = []
    for n, k, m in ((1024, 512, 1792), (1024, 1792, 512), (2048, 2048, 2048)):
        a, b, out = torch.randn(n, k), torch.randn(k, m), torch.empty(n, m)
        times = []
        end = time.perf_counter() + seconds / 3
        while time.perf_counter() < end:
            start = time.perf_counter()
            torch.mm(a, b, out=out)
            times.append(time.perf_counter() - start)
        found.append(2 * n * k * m / median(times))
    return max(found)


def say(message: dict[str, Any]) -> None:
    """One line of JSON to whoever started this process."""
    print(json.dumps(message), flush=True)


def on_demand(stream: Iterable[Batch], ahead: int) -> Iterator[Batch]:
    """Batches as they are asked for; the step that works on one is timed and waits for a line on standard input.

    `ahead` batches are read before the first step begins.
    """
    start = 0.0
    for number, batch in enumerate(stream):
        if number > ahead:
            say({"seconds": time.perf_counter() - start})
        if number >= ahead:
            if not sys.stdin.readline():
                return
            start = time.perf_counter()
        yield batch


def train_ours(source: Source, stream: Iterable[Batch], count: int, method: str = "rmu") -> list[tuple[float, float]]:
    """The project's own loop; returns the losses of the point with `NU`."""
    whole = shapes.METHODS[method][0].needs_logits
    cut = CutModel(load_whole(source) if whole else load_up_to(source, shapes.LAYER), shapes.LAYER)
    nus = (NU,) if count == 1 else shapes.NUS[:count]
    points = shapes.variants(cut, nus, method=method)
    compared = points[nus.index(NU)]
    train_variants(cut, points, stream, mask_padding=False)
    return [(record.forget_loss, record.retain_loss) for record in compared.records]


def main() -> None:
    """Step on demand, then report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("kind", choices=("baseline", "ours"))
    parser.add_argument("--variants", type=int, default=1)
    parser.add_argument("--method", choices=tuple(shapes.METHODS), default="rmu")
    parser.add_argument("--lengths", choices=("equal", "wmdp"), default="equal")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=64, help="at most")
    args = parser.parse_args()

    interpreter = peak_bytes()
    source = Source(str(args.checkpoint), device="cpu", dtype="float32")
    lengths = shapes.equal_lengths if args.lengths == "equal" else shapes.wmdp_lengths
    topic = lengths(args.length, BATCH * args.steps, VOCABULARY)
    stream = batches([topic], steps=args.steps, batch_size=BATCH, pad_id=0, side="right")
    if args.kind == "baseline":
        losses = train_plainly(
            load_whole(source), load_whole(source), on_demand(stream, ahead=0), NU, method=args.method
        )
    else:
        losses = train_ours(source, on_demand(stream, ahead=1), args.variants, args.method)  # it reads a batch ahead
    say({"losses": losses, "peak_bytes": peak_bytes() - interpreter})


if __name__ == "__main__":
    main()
