"""The adapter to lm-evaluation-harness: its tasks, its model class, its accuracies, our perturbed queries."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import lm_eval.api.task
from lm_eval.api.task import Task
from lm_eval.evaluator import evaluate as harness_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from unlearn.errors import UserError, nearest
from unlearn.evaluate.perturb import perturb
from unlearn.run_folder import write_atomically
from unlearn.screen import say

logging.getLogger("lm_eval").setLevel(logging.ERROR)
# One bar for each model and query is enough: lm-eval shows another one for each task while it builds prompts.
lm_eval.api.task.tqdm = partial(tqdm, disable=True)

STDERR_DRAWS = 100  # only metrics without a closed form (not accuracy) draw samples for their standard error


@dataclass(frozen=True)
class Suite:
    """Everything that is asked: for each query type the harness's tasks, with their documents loaded."""

    tasks: dict[str, Any]  # query -> lm-eval's TaskDict
    names: list[str]  # the tasks and groups that were asked for, in order
    limit: int | None


@dataclass(frozen=True)
class Answers:
    """What a model answered: {"{model}/{task}/{query}/{metric}": value}, and each question's record."""

    metrics: dict[str, float]
    samples: dict[str, list[dict[str, Any]]]  # "{model}/{task}/{query}" -> records

    def write_samples(self, folder: Path) -> None:
        """One file a model, task and query: `folder`/MODEL/TASK/QUERY.jsonl."""
        for name, records in self.samples.items():
            write_atomically(folder / f"{name}.jsonl", "".join(json.dumps(r) + "\n" for r in records))


def load_suite(
    roles: Mapping[str, Sequence[str]],
    queries: Sequence[str],
    tokens: Sequence[str],
    *,
    include_path: str | None,
    seed: int,
    num_fewshot: int,
    limit: int | None,
) -> Suite:
    """Load all questions, before any weight is loaded.

    Args:
        roles: role -> names of lm-eval tasks or groups.
        queries: "default", "perturbed".
        include_path: a folder with task definitions beside lm-eval's own.
        limit: questions per task; None for all.

    Raises UserError for an unknown task and for one whose data cannot be had.
    """
    names = list(dict.fromkeys(name for group in roles.values() for name in group))
    if not names:
        return Suite({}, [], limit)
    # Scanning lm-eval's thousands of task files takes seconds: only if the own folder does not hold them all.
    manager = TaskManager(include_path=include_path, include_defaults=False)
    if not set(names) <= set(manager.all_tasks):
        manager = TaskManager(include_path=include_path)
    for name in names:
        if name not in manager.task_index:
            raise UserError(f"eval.tasks: unknown lm-eval task {name!r}.{nearest(name, manager.all_tasks)}")
    suite = {}
    for query in queries:
        suite[query] = _load(manager, names, num_fewshot)
        if query == "perturbed":
            for task in suite[query]["tasks"].values():
                _perturb_task(task, tokens, seed)
    return Suite(suite, names, limit)


def _load(manager: TaskManager, names: list[str], num_fewshot: int) -> dict[str, Any]:
    """lm-eval's TaskDict of these tasks and groups; one that is also part of a named group is loaded once."""
    merged: dict[str, dict] = {"tasks": {}, "groups": {}, "group_map": {}}
    for name in names:
        if name in merged["tasks"]:
            continue
        try:
            loaded = manager.load([name])
        except Exception as error:  # whatever the hub or a task's own code raises
            raise UserError(f"eval.tasks: cannot load the data of task {name!r}: {error}") from error
        for kind, found in loaded.items():
            merged[kind].update(found)
    for task in merged["tasks"].values():
        task.set_config(key="num_fewshot", value=num_fewshot)
        task.set_fewshot_seed(seed=0)
    return merged


def _perturb_task(task: Task, tokens: Sequence[str], seed: int) -> None:
    """Replace the documents that a task asks by perturbed ones; few-shot examples stay."""
    split = task.config.test_split or task.config.validation_split
    perturbed = [
        perturb(document, tokens, seed=seed, task=task.task_name, question=i)
        for i, document in enumerate(task.eval_docs)
    ]
    task.dataset[split] = datasets.Dataset.from_list(perturbed)
    task.config.process_docs = None  # has been applied by eval_docs


def evaluate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, suite: Suite, *, label: str, batch_size: int
) -> Answers:
    """Ask a model everything; accuracies and standard errors are those of lm-eval.

    `label`, "base" or "unlearned", is the first part of every name.
    """
    answers = Answers({}, {})
    adapter = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, backend="causal")
    for query, tasks in suite.tasks.items():
        say(f"Evaluating the {label} model, {query} queries")
        results = harness_evaluate(adapter, tasks, limit=suite.limit, bootstrap_iters=STDERR_DRAWS, log_samples=True)
        assert results is not None
        for task, values in results["results"].items():
            for key, value in values.items():
                metric = key.partition(",")[0]  # the rest names lm-eval's filter
                if metric in ("acc", "acc_stderr") and isinstance(value, float):
                    answers.metrics[f"{label}/{task}/{query}/{metric}"] = value
        for task, asked in results["samples"].items():
            answers.samples[f"{label}/{task}/{query}"] = [_sample_record(sample, query) for sample in asked]
    return answers


def _sample_record(sample: Mapping[str, Any], query: str) -> dict[str, Any]:
    """What a paired test needs of one question."""
    loglikelihoods = [float(response[0]) for response in sample["filtered_resps"]]
    choice = max(range(len(loglikelihoods)), key=loglikelihoods.__getitem__)
    return {
        "id": sample["doc_id"],
        "query": query,
        "loglikelihoods": loglikelihoods,
        "choice": choice,
        "correct": bool(sample["acc"]),
    }
