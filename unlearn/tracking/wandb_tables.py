"""Results of an evaluation as rows of tables in W&B: accuracies, questions, and values of MaxLogit."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet  # type: ignore[import-untyped]

from unlearn.config.schema import text_role
from unlearn.evaluate.roles import role_accuracies, role_means

if TYPE_CHECKING:
    from unlearn.evaluate.harness import Answers

Row = list[str | float | int | bool | None]
COMPARED = [f"{other}_{figure}" for other in ("base", "default") for figure in ("difference", "low", "high", "p")]
EVALUATION: list[str | int] = ["role", "task", "query", "model", "acc", "stderr", *COMPARED]
TEXTS: list[str | int] = ["role", "task", "query", "model", "nats a token", "stderr", "perplexity", *COMPARED]
QUESTIONS: list[str | int] = [
    "task", "query", "question", "base correct", "unlearned correct", "base choice", "unlearned choice", "base margin",
    "unlearned margin",
]  # fmt: skip
MODELS = ("base", "unlearned")


def evaluation_rows(metrics: Mapping[str, float], roles: Mapping[str, Sequence[str]]) -> list[Row]:
    """EVALUATION of every role's tasks, queries and models: accuracy, and what it was compared with."""
    return _rows(metrics, roles, ("acc", "acc_stderr"))


def text_rows(metrics: Mapping[str, float], roles: Mapping[str, Sequence[str]]) -> list[Row]:
    """TEXTS of every role's held-out texts, queries and models."""
    return _rows(metrics, roles, ("nats", "nats_stderr", "perplexity"))


def _rows(metrics: Mapping[str, float], roles: Mapping[str, Sequence[str]], wanted: Sequence[str]) -> list[Row]:
    """Rows of what has the first of the wanted figures."""
    queries = dict.fromkeys(name.rsplit("/", 2)[1] for name in metrics if name.endswith(f"/{wanted[0]}"))
    rows: list[Row] = []
    for role, tasks in roles.items():
        for task in tasks:
            for query in queries:
                for model in MODELS:
                    place = f"{model}/{task}/{query}"
                    if f"{place}/{wanted[0]}" in metrics:
                        figures = [metrics.get(f"{place}/{name}") for name in (*wanted, *COMPARED)]
                        rows.append([role, task, query, model, *figures])
    return rows


def question_rows(base: Answers, unlearned: Answers) -> Iterator[Row]:
    """QUESTIONS of every task and query, both models side by side.

    A margin is the log-likelihood of the choice less that of the second; None for tasks without options.
    """
    for place, records in unlearned.samples.items():
        if any("nats" in record for record in records):  # held-out texts
            continue
        _, task, query = place.split("/")
        before = {record["id"]: record for record in base.samples[f"base/{task}/{query}"]}
        for after in records:
            both = before[after["id"]], after
            facts = [[r.get("correct") for r in both], [r.get("choice") for r in both], [_margin(r) for r in both]]
            yield [task, query, after["id"], *(value for pair in facts for value in pair)]


def _margin(record: Mapping[str, Any]) -> float | None:
    *_, second, first = [None, None, *sorted(record.get("loglikelihoods", ()))]
    return None if first is None or second is None else first - second


def max_logit_values(answers: Answers, groups: Mapping[str, Sequence[str]]) -> dict[tuple[str, str], np.ndarray]:
    """(name of a group of tasks, query) -> the MaxLogits of all its tasks, where they were measured."""
    found: dict[tuple[str, str], list[Any]] = {}
    for file, content in answers.files.items():
        _, task, rest = file.split("/")
        query = rest.removesuffix(".maxlogit.parquet")
        values = pyarrow.parquet.read_table(io.BytesIO(content), columns=["maxlogit"])["maxlogit"].to_numpy()
        for name, tasks in groups.items():
            if task in tasks:
                found.setdefault((name, query), []).append(values)
    return {key: np.concatenate(parts) for key, parts in found.items()}


def role_figures(metrics: Mapping[str, float], roles: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """ROLE/QUERY/{acc,maxlogit_mean,nats} of the unlearned model, base/ROLE/..., and robustness/drop and .../text_cost.

    A figure of the base model whose name is also a task's is left out.
    """
    found = {}
    for metric in ("acc", "maxlogit_mean", "nats"):
        for (role, query), value in role_means(metrics, roles, "unlearned", metric).items():
            found[f"{role}/{query}/{metric}"] = value
        for (role, query), value in role_means(metrics, roles, "base", metric).items():
            if f"base/{role}/{query}/{metric}" not in metrics:
                found[f"base/{role}/{query}/{metric}"] = value
    unlearned = role_accuracies(metrics, roles, "unlearned")
    if {("retain", "default"), ("retain", "perturbed")} <= unlearned.keys():
        found["robustness/drop"] = unlearned["retain", "default"] - unlearned["retain", "perturbed"]
    costs = role_means(metrics, roles, "unlearned", "default_difference")
    if (text_role("retain"), "perturbed") in costs:
        found["robustness/text_cost"] = costs[text_role("retain"), "perturbed"]
    return found
