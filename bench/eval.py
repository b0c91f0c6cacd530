"""Our adapter against lm-eval's own `hf` at its best batch size: `make bench-eval`, on real MMLU questions.

Default and perturbed queries of the same questions together, as every run needs them; one process, same model,
alternating, medians. Then the points of a grid, evaluated together and one after another, on this model and on the
embedded one. Writes `bench/eval_results.json`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch
from lm_eval.models.huggingface import HFLM
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bench.shapes import random_delta
from bench.work import counted_flops, least_flops
from bench.worker import gemm_peak
from unlearn.config.compose import composed
from unlearn.config.schema import Config
from unlearn.config.settle import settle
from unlearn.evaluation.harness import evaluate
from unlearn.evaluation.scorer import Scorer
from unlearn.evaluation.suite import Suite, load_suite
from unlearn.models.group import ModelGroup
from unlearn.models.loading import Source, load_tokenizer, load_whole
from unlearn.records.answers import Answers
from unlearn.training.cost import Shape

SUBJECTS = ["anatomy", "college_biology", "computer_security", "virology"]
RESULTS = Path(__file__).parent / "eval_results.json"
Result = TypeVar("Result")
Seconds = dict[str, list[float]]


QUERIES: dict[str, list[str]] = {"default": [], "perturbed": ["SARS-CoV-2"]}


def by_hf(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, suite: Suite, batch_size: int
) -> list[tuple[float, bool]]:
    """lm-eval's own class, one query after the other, as lm-eval would ask them."""
    adapter = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, backend="causal")
    return [a for query in suite.tasks for a in adapter.loglikelihood(list(suite.instances(query)), disable_tqdm=True)]


def by_ours(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, suite: Suite, tokens: int
) -> list[tuple[float, bool]]:
    """Our class, both queries at once."""
    return Scorer(ModelGroup(model), tokenizer, tokens).loglikelihood(_requests(suite))


def accuracy(suite: Suite, answers: list[tuple[float, bool]]) -> list[bool]:
    """Whether each question was answered rightly; four requests each, in order."""
    requests = _requests(suite)
    right = []
    for i in range(0, len(requests), 4):
        four = [loglikelihood for loglikelihood, _ in answers[i : i + 4]]
        right.append(four.index(max(four)) == requests[i].doc["answer"])
    return right


def against_hf(config: Config, suite: Suite, batch_sizes: Sequence[int], rounds: int) -> dict[str, Any]:
    """Seconds of both, the counted FLOPs of both, and the fewest."""
    source = Source.of(config.model)
    model, tokenizer = load_whole(source), load_tokenizer(source)
    contestants: dict[str, Callable[[], list[tuple[float, bool]]]] = {
        f"hf, batch size {n}": partial(by_hf, model, tokenizer, suite, n) for n in batch_sizes
    }
    contestants["ours"] = partial(by_ours, model, tokenizer, suite, config.eval.tokens_per_batch)
    seconds, answers = alternating(contestants, rounds)
    times = {name: median(values) for name, values in seconds.items()}
    best = min((name for name in times if name != "ours"), key=times.__getitem__)
    flops = {name: counted_flops(contestants[name]) for name in (best, "ours")}
    least, rate = _least(config, model, tokenizer, suite), gemm_peak()
    return {
        "eval_speedup": median(a / b for a, b in zip(seconds[best], seconds["ours"], strict=True)),
        "bound": flops[best] / least,
        "max_loglikelihood_difference": max(
            abs(a - b) for (a, _), (b, _) in zip(answers["ours"], answers[best], strict=True)
        ),
        "accuracy_equal": accuracy(suite, answers["ours"]) == accuracy(suite, answers[best]),
        "greedy_equal": [g for _, g in answers["ours"]] == [g for _, g in answers[best]],
        "seconds": times,
        "flops_counted": flops,
        "flops_least": least,
        "gemm_peak_flops": rate,
        "share_of_gemm": {name: work / times[name] / rate for name, work in flops.items()},
        "questions": len(_requests(suite)) // 4,
        "model": config.model.name,
        "device": str(source.torch_device),
        "threads": torch.get_num_threads(),
    }


def grid(config: Config, suite: Suite, points: int, rounds: int) -> dict[str, Any]:
    """Seconds of several points' evaluation together, and of one after another."""
    source = Source.of(config.model)
    model, tokenizer = load_whole(source), load_tokenizer(source)
    deltas = [random_delta(model, config.model.layer, seed) for seed in range(points)]
    ask = partial(
        evaluate, tokenizer=tokenizer, suite=suite, label="unlearned", tokens_per_batch=config.eval.tokens_per_batch
    )
    contestants: dict[str, Callable[[], list[Answers]]] = {
        "one after another": lambda: [ask(ModelGroup(model, [delta]))[0] for delta in deltas],
        "together": lambda: ask(ModelGroup(model, deltas)),
    }
    seconds, answers = alternating(contestants, rounds)
    alone, together = answers.values()
    return {
        "saved": 1 - median(b / a for a, b in zip(*seconds.values(), strict=True)),
        "equal": [found.samples for found in alone] == [found.samples for found in together],
        "seconds": {name: median(values) for name, values in seconds.items()},
        "points": points,
        "questions": len(_requests(suite)) // 4,
        "model": config.model.name,
    }


def alternating(contestants: Mapping[str, Callable[[], Result]], rounds: int) -> tuple[Seconds, dict[str, Result]]:
    """Seconds of each round, and the last results."""
    seconds: Seconds = {name: [] for name in contestants}
    results = {}
    for _ in range(rounds):
        for name, run in contestants.items():
            start = time.perf_counter()
            results[name] = run()
            seconds[name].append(time.perf_counter() - start)
    return seconds, results


def _requests(suite: Suite) -> list[Any]:
    return [request for query in suite.tasks for request in suite.instances(query)]


def _least(config: Config, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, suite: Suite) -> int:
    adapter = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal")
    pairs = [adapter._encode_pair(*request.args) for request in _requests(suite)]
    inputs = {tuple([*context, *continuation][:-1]): len(continuation) for context, continuation in pairs}
    shape = Shape.of(model.config, config.model.layer)
    return least_flops(shape, [list(tokens) for tokens in inputs], sum(inputs.values()))


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--local-dir", help="a folder with MMLU (eval.local_dir); without it from the hub")
    parser.add_argument("--model", default="smollm2_135m", help="a file of conf/model")
    parser.add_argument("--subjects", nargs="+", default=SUBJECTS)
    parser.add_argument("--questions", type=int, default=25, help="of each subject")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--points", type=int, default=14, help="of the grid")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    config = settle(composed([f"model={args.model}", "eval=none"]))
    toy = settle(composed(["eval=toy"]))

    def mmlu(questions: int) -> Suite:
        tasks = [f"mmlu_{subject}" for subject in args.subjects]
        return load_suite({"retain": tasks}, QUERIES, local_dir=args.local_dir, limit=questions)

    results = against_hf(config, mmlu(args.questions), args.batch_sizes, args.rounds)
    _print_speed(results)
    embedded = load_suite(toy.eval.tasks, QUERIES, include_path=toy.eval.include_path, limit=args.questions)
    results["grids"] = [
        grid(config, mmlu(max(1, args.questions // 4)), args.points, args.rounds),
        grid(toy, embedded, args.points, args.rounds),
    ]
    _print_grids(results["grids"])
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


def _print_speed(r: dict[str, Any]) -> None:
    best, ours = r["flops_counted"]
    table = Table("", "seconds", "speedup", title=f"{r['questions']} questions, default and perturbed")
    for name, value in r["seconds"].items():
        table.add_row(name, f"{value:.1f}", f"{r['seconds'][best] / value:.2f}")
    table.add_row("bound by FLOPs: hf's counted / the fewest", "", f"{r['bound']:.2f}")
    table.add_row("share of the bound", "", f"{r['eval_speedup'] / r['bound']:.2f}")
    console = Console()
    console.print(table)
    counted = ", ".join(f"{name} {r['flops_counted'][name] / 1e9:.0f}" for name in (best, ours))
    shares = ", ".join(f"{name} {r['share_of_gemm'][name]:.2f}" for name in (best, ours))
    console.print(f"counted GFLOP: {counted}, the fewest {r['flops_least'] / 1e9:.0f}")
    console.print(f"counted FLOPs / (time x GEMM peak of {r['gemm_peak_flops'] / 1e9:.0f} GFLOP/s): {shares}")
    console.print(
        f"largest difference of a log-likelihood {r['max_loglikelihood_difference']:.1e}, "
        f"accuracies equal: {r['accuracy_equal']}"
    )


def _print_grids(grids: list[dict[str, Any]]) -> None:
    table = Table("model", "points", "questions", "one after another", "together", "saved", "equal")
    for g in grids:
        seconds = (f"{value:.1f} s" for value in g["seconds"].values())
        table.add_row(g["model"], str(g["points"]), str(g["questions"]), *seconds, f"{g['saved']:.0%}", str(g["equal"]))
    Console().print(table)


if __name__ == "__main__":
    main()
