"""Measure everything on a GPU: `python -m bench.gpu -o results.json` (`make bench-gpu`).

Sections, in the order of their importance: a correctness; b training, c evaluation and d memory at the shape of
Zephyr-7B with random weights in bfloat16; n training and memory of NPO, which needs the whole model; p a profile of a
training step. d's figures come with b's, from the same runs. Figures are printed, and written to the file, as they are
measured. A section or a case that fails is a line with its error, and the others go on. Exit status 1 if one failed or
a check did not pass.

Without a GPU all of it runs in float32, and small: `--width 0.03125 --batch 1 --lengths 64 --questions 8`.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path

import torch

from bench import shapes
from bench.gpu import likelihood, profile, training
from bench.gpu.device import release
from bench.gpu.results import Results

SECTIONS = ("a", "b", "c", "d", "n", "p")


def main(arguments: list[str] | None = None) -> None:
    """Run the sections that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--profile", action="store_true", help="also section p, where --sections leaves it out")
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
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options = {name: value for name, value in vars(args).items() if name != "output"}
    results = Results(args.output, device, options)
    for section in chosen(args.sections, args.profile):
        if time.perf_counter() - begin > args.seconds:
            results.add(section, "skipped", skipped=f"not begun after {args.seconds:g} s")
            continue
        results.guard(section, partial(run_section, section, args, results, device))
        release(device)
    sys.exit(1 if results.failed else 0)


def chosen(sections: list[str], profiled: bool) -> list[str]:
    """The sections to run, each once: d needs no runs of its own beside b."""
    wanted = dict.fromkeys([*sections, *(["p"] if profiled else [])])
    return [section for section in wanted if not (section == "d" and "b" in wanted)]


def run_section(section: str, args: argparse.Namespace, results: Results, device: torch.device) -> None:
    """Run one section."""
    config = shapes.zephyr(args.width)
    if section == "a":
        from bench.gpu import correctness

        correctness.measure(results, device, args.steps)
    elif section == "b":
        training.measure(results, config, device, args.batch, args.lengths)
    elif section == "d":
        training.measure_memory(results, config, device, args.batch, args.lengths[0])
    elif section == "n":
        likelihood.measure(results, config, device, args.batch, args.lengths[0])
    elif section == "c":
        from bench.gpu import evaluation

        evaluation.measure(results, config, device, args.questions, args.tokens_per_batch)
    else:
        profile.measure(results, config, device, args.batch, args.lengths[0])


if __name__ == "__main__":
    main()
