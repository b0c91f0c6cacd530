"""Memory and time on the shape of Zephyr-7B with random weights: `python -m bench.gpu`.

Training as the paper has it (batch 4; 512 and 768 tokens; bfloat16 on a GPU) by the baseline, one variant and
fourteen; then the evaluation of 256 questions of MMLU's lengths and MaxLogit's 15 greedy tokens on all 32 layers.
Each case is a process of its own. Without a GPU: `python -m bench.gpu --width 0.0625 --batch 1` runs all of it, small.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModel, AutoModelForCausalLM, MistralConfig, PreTrainedModel

import unlearn
from bench import shapes
from bench.baseline import train_plainly
from bench.worker import NU, peak_bytes
from unlearn.data.batches import Batch, batches
from unlearn.evaluate.maxlogit import continue_greedily
from unlearn.evaluate.scorer import Scorer
from unlearn.models.cutting import CutModel
from unlearn.models.loading import Source, load_tokenizer
from unlearn.models.memory import reuse_memory
from unlearn.training.cost import Shape, training_memory
from unlearn.training.loop import train

CASES = ("baseline", "one", "many", "many-paper", "questions", "maxlogit")
STEPS, QUESTIONS, GREEDY, TOKENS_PER_BATCH = 4, 256, 15, 16384
TOKENIZER = str(Path(unlearn.__file__).parent / "toy" / "model")


def build(config: MistralConfig, device: torch.device, head: bool = True) -> PreTrainedModel:
    """Random weights, made on the device."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with torch.device(device):
        torch.manual_seed(shapes.SEED)
        model = (AutoModelForCausalLM if head else AutoModel).from_config(config, dtype=dtype)
    return model.eval().requires_grad_(False)


def timed(stream: Iterable[Batch], moments: list[float]) -> Iterator[Batch]:
    """Note when each batch is asked for, and when one more is."""
    for batch in stream:
        moments.append(time.perf_counter())
        yield batch
    moments.append(time.perf_counter())


def training(case: str, config: MistralConfig, device: torch.device, batch: int, length: int) -> list[float]:
    """Seconds of each step but the first."""
    topic = shapes.equal_lengths(length, batch * STEPS, config.vocab_size)
    moments: list[float] = []
    stream = timed(batches([topic], steps=STEPS, batch_size=batch, pad_id=0, side="right"), moments)
    if case == "baseline":
        train_plainly(build(config, device), build(config, device), stream, NU)
    else:
        config.num_hidden_layers = shapes.LAYER + 1
        cut = CutModel(build(config, device, head=False), shapes.LAYER)
        nus = (NU,) if case == "one" else shapes.NUS
        points = shapes.variants(cut, nus, "model" if case == "many-paper" else "master")
        train(cut, points, stream, mask_padding=False, log_every=1, on_record=lambda *_: None)
        if device.type == "cuda":
            torch.cuda.synchronize()
        moments = [*moments[1:], time.perf_counter()]
    return [b - a for a, b in pairwise(moments[1:])]


@torch.inference_mode()
def asking(case: str, config: MistralConfig, device: torch.device, batch: int) -> list[float]:
    """Seconds for all questions."""
    model = build(config, device)
    draw = random.Random(shapes.SEED)
    # MMLU's prompts: 50 to 400 tokens, half of them below 110.
    lengths = sorted(max(50, min(400, round(draw.lognormvariate(4.7, 0.55)))) for _ in range(QUESTIONS))
    prompts = [[draw.randrange(3, config.vocab_size) for _ in range(n)] for n in lengths]
    if case == "questions":  # as an evaluation scores them; the tokenizer is not used
        scorer = Scorer(model, load_tokenizer(Source(TOKENIZER)), TOKENS_PER_BATCH)
        requests = [(("", str(i)), prompt, [token]) for i, prompt in enumerate(prompts) for token in (5, 6, 7, 8)]
        start = time.perf_counter()
        scorer._loglikelihood_tokens(requests)
    else:
        start = time.perf_counter()
        for first in range(0, QUESTIONS, 4 * batch):
            continue_greedily(model, prompts[first : first + 4 * batch], GREEDY)
    return [time.perf_counter() - start]


def one_case(args: argparse.Namespace) -> dict[str, float]:
    """Median seconds and peak bytes of one case in this process."""
    reuse_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = shapes.zephyr(args.width)
    before = peak_bytes()
    if args.case in ("questions", "maxlogit"):
        seconds = asking(args.case, config, device, args.batch)
    else:
        seconds = training(args.case, config, device, args.batch, args.length)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_bytes() - before
    return {"seconds": median(seconds), "peak_bytes": peak}


def main() -> None:
    """Run all cases, print the table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=float, default=1.0, help="of the hidden and MLP size, 1 is Zephyr's")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 768])
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--length", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(one_case(args)))
        return
    on_gpu = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if on_gpu else "CPU"
    shape = Shape.of(shapes.zephyr(args.width), shapes.LAYER)
    table = Table("case", "tokens", "seconds", "peak GB", "estimated GB", title=f"Width {args.width:g} on {name}")
    results: list[dict[str, Any]] = []
    for case in CASES:
        for length in args.lengths if case not in ("questions", "maxlogit") else [0]:
            command = [sys.executable, "-m", "bench.gpu", "--case", case, "--length", str(length)]
            command += ["--width", str(args.width), "--batch", str(args.batch)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
            result = json.loads(done.stdout)
            results.append({"case": case, "length": length, **result})
            expected = ""
            if case in ("one", "many", "many-paper"):
                precision = "model" if case == "many-paper" else "master"
                bytes_each = 2 if on_gpu else 4
                memory = training_memory(shape, 2 * args.batch * length, weight_bytes=bytes_each, precision=precision)
                expected = f"{memory.total(1 if case == 'one' else len(shapes.NUS)) / 1e9:.2f}"
            figures = (f"{result['seconds']:.3f}", f"{result['peak_bytes'] / 1e9:.2f}", expected)
            table.add_row(case, str(length or ""), *figures)
    Console(width=110).print(table)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
