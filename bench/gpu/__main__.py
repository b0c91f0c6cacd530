"""Measure everything on a GPU: `python -m bench.gpu -o results.json` (`make bench-gpu`).

Sections, in the order of their importance: a correctness, b training (and d memory, from the same runs) and c
evaluation at the shape of Zephyr-7B with random weights in bfloat16; p a profile of a training step. Figures are
printed, and written to the file, as they are measured. Exit status 1 if a case failed or a check did not pass.

Without a GPU all of it runs in float32, and small: `--width 0.03125 --batch 1 --lengths 64 --questions 8`.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from bench import shapes
from bench.gpu import profile, training
from bench.gpu.device import release
from bench.gpu.results import Results
from unlearn.models.memory import reuse_memory


def main(arguments: list[str] | None = None) -> None:
    """Run the sections that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=("a", "b", "c", "p"), default=["a", "b", "c", "p"])
    parser.add_argument("-o", dest="output", type=Path, metavar="FILE", help="JSON with all figures")
    parser.add_argument("--seconds", type=float, default=480, help="no section begins later than that")
    parser.add_argument("--width", type=float, default=1.0, help="of the hidden and MLP size; 1 is Zephyr's")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 768])
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--tokens-per-batch", type=int, default=16384)
    parser.add_argument("--steps", type=int, default=100, help="training steps of the embedded model in section a")
    args = parser.parse_args(arguments)
    begin = time.perf_counter()
    reuse_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options = {name: value for name, value in vars(args).items() if name != "output"}
    results = Results(args.output, device, options)
    for section in args.sections:
        if time.perf_counter() - begin > args.seconds:
            results.add(section, "skipped", skipped=f"not begun after {args.seconds:g} s")
            continue
        run_section(section, args, results, device)
        release(device)
    sys.exit(1 if results.failed else 0)


def run_section(section: str, args: argparse.Namespace, results: Results, device: torch.device) -> None:
    """Run one section."""
    config = shapes.zephyr(args.width)
    if section == "a":
        from bench.gpu import correctness  # it imports the tests' golden replay, and with it pytest

        correctness.measure(results, device, args.steps)
    elif section == "b":
        training.measure(results, config, device, args.batch, args.lengths)
    elif section == "c":
        from bench.gpu import evaluation

        evaluation.measure(results, config, device, args.questions, args.tokens_per_batch)
    else:
        profile.measure(results, config, device, args.batch, args.lengths[0])


if __name__ == "__main__":
    main()
