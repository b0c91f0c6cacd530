"""Run folders as a run leaves them, with made-up answers: for reports on more runs than a test can train."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

ROLES = {"retain": ["mmlu"], "near": ["near_bio", "near_cyber"], "forget": ["wmdp_bio", "wmdp_cyber"]}
QUERIES = ("default", "perturbed")
QUESTIONS = 60


def accuracy(role: str, query: str, nu: float) -> float:
    """Without RNA perturbation costs 0.25 of retained knowledge, which nu = 0.1 wins back; larger nu costs it all."""
    if role == "forget":
        return 0.28
    return 0.85 if query == "default" else 0.6 + 0.25 * min(nu / 0.1, 1.0) - max(0.0, nu - 0.1)


def made_up_run(
    folder: Path,
    *,
    method: str = "rmu",
    argument: Mapping[str, float] | None = None,
    nu: float = 0.0,
    seed: int = 0,
    status: str = "done",
    queries: Sequence[str] = QUERIES,
    answers: Mapping[tuple[str, str], Sequence[bool]] | None = None,
    changes: Mapping[str, Any] | None = None,
    samples: bool = True,
) -> Path:
    """A run's folder. `answers` sets (task, query) -> correctness; `changes` sets dotted keys of run.json."""
    chosen = {"name": method, "_target_": "unlearn.methods.X", **(argument or {"c": 6.5})}
    identity = {
        "model": {"name": "tiny", "layer": 7},
        "method": chosen,
        "rna": {"nu": nu, "scale": "std"},
        "train": {"steps": 40, "lr": 5e-5},
        "eval": {"tasks": ROLES, "queries": list(queries), "seed": 0, "replaced": 1, "num_fewshot": 0, "limit": None},
        "seed": seed,
        "results_version": 2,
    }
    words = {query: "w" * 64 for query in queries if query != "default"}
    record = {
        "status": status,
        "config": identity,
        "identity": identity,
        "inputs": {
            "model": "m" * 64,
            "data": {"bio": "d"},
            "query_words": words,
        },
        "code": {"commit": "c" * 40, "changed": False},
    }
    if status == "failed":
        record["error"] = "CUDA is out of memory"
    record = copy.deepcopy(record)
    for key, value in (changes or {}).items():
        *parents, last = key.split(".")
        place: dict = record
        for parent in parents:
            place = place[parent]
        place[last] = value
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(record))
    if status == "done":
        _results(folder, record, nu, seed, answers or {}, samples)
    return folder


def _results(
    folder: Path, record: dict, nu: float, seed: int, answers: Mapping[tuple[str, str], Sequence[bool]], samples: bool
) -> None:
    metrics: dict[str, float] = {}
    draw = np.random.default_rng([seed, int(1000 * nu)])
    for role, tasks in ROLES.items():
        for task in tasks:
            for query in record["identity"]["eval"]["queries"]:
                right = answers.get((task, query))
                if right is None:
                    right = list(draw.random(QUESTIONS) < accuracy(role, query, nu))
                base = [True] * len(right)
                for model, correct in (("base", base), ("unlearned", right)):
                    mean = float(np.mean(correct))
                    metrics[f"{model}/{task}/{query}/acc"] = mean
                    metrics[f"{model}/{task}/{query}/acc_stderr"] = (mean * (1 - mean) / (len(correct) - 1)) ** 0.5
                difference = float(np.mean(right)) - 1
                against = {"difference": difference, "low": difference - 0.1, "high": difference + 0.1, "p": 0.01}
                metrics |= {f"unlearned/{task}/{query}/base_{name}": value for name, value in against.items()}
                if samples:
                    for model, correct in (("base", base), ("unlearned", right)):
                        _write_answers(folder / "samples" / model / task / f"{query}.jsonl", correct)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    if samples:
        (folder / "samples/roles.json").write_text(json.dumps(ROLES))
        for model, shift in (("base", 20.0), ("unlearned", 12.0)):
            values = draw.normal(shift, 2.0, 200)
            file = folder / "samples" / model / "mmlu" / "perturbed.maxlogit.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            pd.DataFrame({"maxlogit": values}).to_parquet(file)
        steps = [
            {"step": step, "forget_loss": 1 / (1 + step), "retain_loss": 0.01 + 0.001 * step, "forget_cosine": 0.9}
            for step in range(40)
        ]
        (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in steps))


def _write_answers(file: Path, right: Sequence[bool]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps({"id": i, "correct": bool(c)}) + "\n" for i, c in enumerate(right)))


def made_up_grid(root: Path) -> Path:
    """Three methods, nu of 0, 0.05, 0.1 and 0.3, three seeds: 36 runs, of which one failed and one is not there."""
    for method, argument in (("rmu", {"c": 6.5}), ("adaptive_rmu", {"beta": 3.0}), ("rsv", {"c": 10.0})):
        for nu in (0.0, 0.05, 0.1, 0.3):
            for seed in (0, 1, 2):
                name = f"{method}-{nu:g}-{seed}"
                if name == "rsv-0.3-2":
                    continue
                status = "failed" if name == "rmu-0.05-1" else "done"
                queries = (*QUERIES, "similarity-least", "similarity-mean", "similarity-most", "ngram-2", "ngram-4")
                made_up_run(
                    root / name, method=method, argument=argument, nu=nu, seed=seed, status=status, queries=queries
                )
    return root
