"""Our adapter against lm-eval's own `hf` at its best batch size: `make bench-eval`, on real MMLU questions.

Default and perturbed queries of the same questions together, as every run needs them; one process, same model,
alternating, medians. Writes `bench/eval_results.json`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from rich.console import Console
from rich.table import Table

from unlearn.config.compose import composed
from unlearn.config.settle import settle
from unlearn.evaluate.scorer import Scorer
from unlearn.evaluate.suite import Suite, load_suite
from unlearn.models.loading import Source, load_tokenizer, load_whole
from unlearn.models.memory import reuse_memory

SUBJECTS = ["anatomy", "college_biology", "computer_security", "virology"]
RESULTS = Path(__file__).parent / "eval_results.json"


def by_hf(model: Any, tokenizer: Any, suite: Suite, batch_size: int) -> list[tuple[float, bool]]:
    """lm-eval's own class, one query after the other, as lm-eval would ask them."""
    adapter = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, backend="causal")
    return [a for query in suite.tasks for a in adapter.loglikelihood(list(suite.instances(query)), disable_tqdm=True)]


def by_ours(model: Any, tokenizer: Any, suite: Suite, tokens: int) -> list[tuple[float, bool]]:
    """Our class, both queries at once."""
    adapter = Scorer(model, tokenizer, tokens)
    return adapter.loglikelihood([request for query in suite.tasks for request in suite.instances(query)])


def accuracy(suite: Suite, answers: list[tuple[float, bool]]) -> list[bool]:
    """Whether each question was answered rightly; four requests each, in order."""
    requests = [request for query in suite.tasks for request in suite.instances(query)]
    right = []
    for i in range(0, len(requests), 4):
        four = [loglikelihood for loglikelihood, _ in answers[i : i + 4]]
        right.append(four.index(max(four)) == requests[i].doc["answer"])
    return right


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--local-dir", help="a folder with MMLU (eval.local_dir); without it from the hub")
    parser.add_argument("--model", default="smollm2_135m", help="a file of conf/model")
    parser.add_argument(
        "--subjects", nargs="+", default=["anatomy", "college_biology", "computer_security", "virology"]
    )
    parser.add_argument("--questions", type=int, default=25, help="of each subject")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    reuse_memory()
    config = settle(composed([f"model={args.model}", "eval=none"]))
    source = Source.of(config.model)
    model, tokenizer = load_whole(source), load_tokenizer(source)
    suite = load_suite(
        {"retain": [f"mmlu_{subject}" for subject in args.subjects]},
        {"default": [], "perturbed": ["SARS-CoV-2"]},
        local_dir=args.local_dir,
        limit=args.questions,
    )
    tokens = config.eval.tokens_per_batch
    seconds: dict[str, list[float]] = {}
    answers: dict[str, list[tuple[float, bool]]] = {}
    for _ in range(args.rounds):
        contestants: dict[str, Callable[[], list[tuple[float, bool]]]] = {
            f"hf, batch size {n}": partial(by_hf, model, tokenizer, suite, n) for n in args.batch_sizes
        }
        contestants["ours"] = partial(by_ours, model, tokenizer, suite, tokens)
        for name, run in contestants.items():
            start = time.perf_counter()
            answers[name] = run()
            seconds.setdefault(name, []).append(time.perf_counter() - start)
    times = {name: median(values) for name, values in seconds.items()}
    best = min((name for name in times if name != "ours"), key=times.__getitem__)
    difference = max(abs(a - b) for (a, _), (b, _) in zip(answers["ours"], answers[best], strict=True))
    results = {
        "eval_speedup": median(a / b for a, b in zip(seconds[best], seconds["ours"], strict=True)),
        "max_loglikelihood_difference": difference,
        "accuracy_equal": accuracy(suite, answers["ours"]) == accuracy(suite, answers[best]),
        "greedy_equal": [g for _, g in answers["ours"]] == [g for _, g in answers[best]],
        "seconds": times,
        "questions": len(accuracy(suite, answers["ours"])),
        "model": config.model.name,
        "device": str(source.torch_device),
        "threads": torch.get_num_threads(),
    }
    table = Table("", "seconds", "speedup", title=f"{results['questions']} questions, default and perturbed")
    for name, value in times.items():
        table.add_row(name, f"{value:.1f}", f"{times[best] / value:.2f}")
    Console().print(table)
    print(f"largest difference of a log-likelihood {difference:.1e}, accuracies equal: {results['accuracy_equal']}")
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
