"""One measurement in a process of its own: `python -m bench.worker CHECKPOINT baseline|ours ...` prints JSON."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch

from bench import shapes
from bench.baseline import train_plainly
from unlearn.cpu_memory import reuse_memory
from unlearn.cut import CutModel
from unlearn.data import Batch, batches
from unlearn.model import Source, load_up_to, load_whole
from unlearn.train import Record, train

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


def timed(stream: Iterable[Batch], moments: list[float]) -> Iterator[Batch]:
    """Note when each batch is asked for, and when one more is."""
    for batch in stream:
        moments.append(time.perf_counter())
        yield batch
    moments.append(time.perf_counter())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("kind", choices=("baseline", "ours"))
    parser.add_argument("--variants", type=int, default=1)
    parser.add_argument("--steps", type=int, default=4, help="the first one is not timed")
    parser.add_argument("--lengths", choices=("equal", "wmdp"), default="equal")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--plain-allocator", action="store_true", help="without unlearn.cpu_memory")
    args = parser.parse_args()

    interpreter = peak_bytes()
    source = Source(str(args.checkpoint), device="cpu", dtype="float32")
    lengths = shapes.equal_lengths if args.lengths == "equal" else shapes.wmdp_lengths
    topic = lengths(args.length, BATCH * args.steps, VOCABULARY)
    moments: list[float] = []
    stream = timed(batches([topic], steps=args.steps, batch_size=BATCH, pad_id=0, side="right"), moments)
    if args.kind == "baseline":
        losses = train_plainly(load_whole(source), load_whole(source), stream, NU)
    else:
        if not args.plain_allocator:
            reuse_memory()
        losses = train_ours(source, stream, args.variants)
        moments = [*moments[1:], time.perf_counter()]  # our loop asks for one batch more than it works on
    peak = peak_bytes() - interpreter
    seconds = [b - a for a, b in pairwise(moments)]
    print(json.dumps({"losses": losses, "seconds": seconds[1:], "peak_bytes": peak, "gemm": gemm_peak()}))


def train_ours(source: Source, stream: Iterable[Batch], count: int) -> list[tuple[float, float]]:
    """The project's own loop; returns the losses of the point with `NU`."""
    cut = CutModel(load_up_to(source, shapes.LAYER), shapes.LAYER)
    nus = (NU,) if count == 1 else shapes.NUS[:count]
    points = shapes.variants(cut, nus)
    compared = points[nus.index(NU)]
    losses = []

    def on_record(variant: object, record: Record) -> None:
        if variant is compared:
            losses.append((record.forget_loss, record.retain_loss))

    train(cut, points, stream, mask_padding=False, log_every=1, on_record=on_record)
    return losses


if __name__ == "__main__":
    main()
