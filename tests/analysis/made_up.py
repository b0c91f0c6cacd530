"""Run folders as a run leaves them, with made-up answers: for reports on more runs than a test can train."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from unlearn.analysis.collect import OF_QUESTIONS
from unlearn.config.identity import RESULTS_VERSION
from unlearn.records.names import NGRAM_QUERIES
from unlearn.records.samples import Sample, write_samples
from unlearn.records.scores import KEY, Score, read_scores, write_scores
from unlearn.storage.hashing import json_sha256

ROLES = {"retain": ["mmlu"], "near": ["near_bio", "near_cyber"], "forget": ["wmdp_bio", "wmdp_cyber"]}
QUERIES = ("default", "perturbed")
QUESTIONS = 60
Answers = Mapping[tuple[str, str], Sequence[bool]]  # (task, query) -> whether each answer is right


def accuracy(role: str, query: str, nu: float) -> float:
    """Without RNA perturbation costs 0.25 of retained knowledge, which nu = 0.1 wins back; larger nu costs it all."""
    if role == "forget":
        return 0.28
    return 0.85 if query == "default" else 0.6 + 0.25 * min(nu / 0.1, 1.0) - max(0.0, nu - 0.1)


def made_up_run(
    folder: Path,
    *,
    method: str = "rmu",
    argument: Mapping[str, Any] | None = None,
    nu: float = 0.0,
    seed: int = 0,
    status: str = "done",
    queries: Sequence[str] = QUERIES,
    answers: Answers | None = None,
    base: Answers | None = None,
    scores: Sequence[Score] | None = None,
    changes: Mapping[str, Any] | None = None,
    samples: bool = True,
) -> Path:
    """A run's folder.

    `answers` and `base` are those of the unlearned and the base model, where they are not drawn or all right; `scores`
    takes the place of all that follows from answers. `changes` sets dotted keys of run.json.
    """
    identity = {
        "model": {"name": "tiny", "layer": 7},
        "method": {"name": method, "_target_": "unlearn.methods.X", **(argument or {"c": 6.5})},
        "rna": {"nu": nu, "scale": "std"},
        "train": {"steps": 40, "lr": 5e-5},
        "eval": {"tasks": ROLES, "queries": list(queries), "seed": 0, "replaced": 1, "num_fewshot": 0, "limit": None},
        "seed": seed,
        "results_version": RESULTS_VERSION,
    }
    words = {query: "w" * 64 for query in queries if query != "default"}
    record = {
        "status": status,
        "config": identity,
        "identity": identity,
        "inputs": {"model": "m" * 64, "data": {"bio": "d"}, "query_words": words},
        "code": {"commit": "c" * 40, "changed": False},
        **({"error": "CUDA is out of memory"} if status == "failed" else {}),
    }
    record = copy.deepcopy(record)
    for key, value in (changes or {}).items():
        *parents, last = key.split(".")
        place: Any = record
        for parent in parents:
            place = place[parent]
        place[last] = value
    if isinstance(record["inputs"], dict):
        record["inputs"].setdefault("questions", _hashes(record))
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(record))
    if status == "done" and scores is not None:
        write_scores(folder, scores)
    elif status == "done":
        _write_results(folder, record, nu, seed, answers or {}, base or {}, samples)
    return folder


def _hashes(record: dict[str, Any]) -> dict[str, dict[str, str]]:
    asked, words = record["identity"]["eval"], record["inputs"]["query_words"]
    if not isinstance(asked["tasks"], dict) or not isinstance(asked["queries"], list):
        return {}
    corpora = asked.get("texts", {}).get("corpora", {})
    roles = {**asked["tasks"], **{f"{role}_text": list(names) for role, names in corpora.items()}}
    content = {key: asked.get(key) for key in ("seed", "replaced", "num_fewshot", "limit")}
    return {
        query: {role: json_sha256([tasks, content, words.get(query)]) for role, tasks in roles.items()}
        for query in asked["queries"]
    }


def _write_results(
    folder: Path, record: dict[str, Any], nu: float, seed: int, answers: Answers, base: Answers, samples: bool
) -> None:
    scores, rows, means = [], [], {}
    draw = np.random.default_rng([seed, int(1000 * nu)])
    asked, words = record["identity"]["eval"], record["inputs"]["query_words"]
    content = {key: asked.get(key) for key in OF_QUESTIONS}
    for role, tasks in asked["tasks"].items():
        for task, query in product(tasks, asked["queries"]):
            right, kind = answers.get((task, query)), (words.get(query), content)
            if right is None:
                right = list(draw.random(QUESTIONS) < accuracy(role, query, nu))
            both = {"base": base.get((task, query), [True] * len(right)), "unlearned": right}
            for model, correct in both.items():
                mean = float(np.mean(correct))
                error = (mean * (1 - mean) / (len(correct) - 1)) ** 0.5
                scores.append(Score(model, role, task, None, query, "acc", mean, stderr=error, n=len(correct)))
                rows += [
                    Sample(
                        model,
                        role,
                        task,
                        query,
                        i,
                        f"{task} {query} {kind} {i}",
                        correct=bool(c),
                        inserted=_word(query, i) if query in NGRAM_QUERIES else None,
                    )
                    for i, c in enumerate(correct)
                ]
            scores.append(difference(role, task, query, "acc", float(np.mean(right)) - 1))
            means[query] = float(np.mean(right))
            if query != "default" and "default" in means:
                scores.append(difference(role, task, query, "acc", means[query] - means["default"], "default"))
    write_scores(folder, scores)
    if samples:
        _add_maxlogits(rows, draw)
        write_samples(folder, rows)
        steps = [
            {"step": step, "forget_loss": 1 / (1 + step), "retain_loss": 0.01 + 0.001 * step, "forget_cosine": 0.9}
            for step in range(40)
        ]
        (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in steps))


def _word(query: str, question: int) -> str | None:
    """The word that an option becomes."""
    return None if query == "default" else f"{query} {question % 4}"


def _add_maxlogits(rows: list[Sample], draw: np.random.Generator) -> None:
    for number, row in enumerate(rows):
        if (row.role, row.query) == ("retain", "perturbed"):
            mean = 20.0 if row.model == "base" else 12.0
            maxlogits = [float(value) for value in draw.normal(mean, mean / 4, 4)]
            rows[number] = Sample(**{**row.__dict__, "maxlogits": maxlogits, "maxlogit_tokens": [0] * 4})


def difference(role: str, task: str, query: str, measure: str, value: float, against: str = "base") -> Score:
    """A paired difference of the unlearned model, with an interval of 0.1 to either side."""
    return Score(
        "unlearned", role, task, None, query, measure, value, against, low=value - 0.1, high=value + 0.1, p=0.01, n=60
    )


def add_scores(folder: Path, scores: Sequence[Score]) -> None:
    """Add scores to those of a run, in the place of those that it has."""
    by_key = {tuple(getattr(score, column) for column in KEY): score for score in [*read_scores(folder), *scores]}
    write_scores(folder, by_key.values())


def made_up_grid(root: Path) -> Path:
    """Three methods, nu of 0, 0.05, 0.1 and 0.3, three seeds: 36 runs, of which one failed and one is not there."""
    for method, argument in (("rmu", {"c": 6.5}), ("adaptive_rmu", {"beta": 3.0}), ("rsv", {"c": 10.0})):
        for nu, seed in product((0.0, 0.05, 0.1, 0.3), (0, 1, 2)):
            name = f"{method}-{nu:g}-{seed}"
            if name == "rsv-0.3-2":
                continue
            status = "failed" if name == "rmu-0.05-1" else "done"
            ngrams = ("similarity-least", "similarity-mean", "similarity-most", "ngram-2", "ngram-4")
            queries = (*QUERIES, *(ngrams if nu in (0.0, 0.1) else ()))  # of the settings that Figure 4 shows
            made_up_run(root / name, method=method, argument=argument, nu=nu, seed=seed, status=status, queries=queries)
    return root
