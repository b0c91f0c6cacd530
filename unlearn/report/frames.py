"""Runs as tables: a row for each run, each accuracy, and each setting with its seeds together.

A setting is all that determines a result but the seed, and which questions were asked. Roles (retain, near, forget)
have the mean of their tasks' accuracies. Accuracies are in percent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
from scipy import stats

from unlearn.report.collect import Run

METHODS = {"rmu": "RMU", "adaptive_rmu": "Adaptive RMU", "rsv": "RSV"}
CONFIDENCE = 0.95
DIGITS = 4  # of what is shown, behind the point
# Keys that have columns of their own, or that say which questions were asked, not how the model was made.
OWN = ("method.", "rna.nu", "seed", "eval.", "results_version")
SETTING = ["setting", "method", "coefficient", "nu", "other"]


def method_name(key: str) -> str:
    """As the paper writes it; a method of one's own under its own name."""
    return METHODS.get(key, key)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys of a nested configuration; lists as JSON."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = json.dumps(value) if isinstance(value, list) else value
    return found


def run_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """A row for each run, whatever its status.

    Columns: number, run, folder, status, why, method, coefficient, nu, seed, other (what else differs between these
    runs, as text), setting, and the method's numeric arguments and other differing keys under their dotted names.
    """
    described = [flat(run.identity) for run in runs]
    differing = _differing(described)
    asked = [_questions(run) if run.done else "" for run in runs]
    several = len({questions for questions in asked if questions}) > 1
    rows = []
    for number, (run, keys, setting) in enumerate(zip(runs, described, _settings(runs), strict=True)):
        arguments = {k: v for k, v in keys.items() if k.startswith("method.") and is_number(v)}
        other = {k: keys[k] for k in differing if k in keys}
        if several and run.done:
            other["questions"] = asked[number]
        rows.append(
            {
                "number": number,
                "run": run.folder.name,
                "folder": str(run.folder),
                "status": run.status,
                "why": run.why,
                "method": method_name(keys["method.name"]) if keys else "",
                "coefficient": ", ".join(f"{k.removeprefix('method.')}={v:g}" for k, v in arguments.items()),
                "nu": keys.get("rna.nu", math.nan),
                "seed": keys.get("seed"),
                "other": " ".join(f"{k}={v}" for k, v in other.items()),
                "setting": setting,
                **arguments,
                **{k: v for k, v in other.items() if k != "questions"},
            }
        )
    return pd.DataFrame(rows)


def is_number(value: Any) -> bool:
    """An int or a float, and no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _differing(described: Iterable[Mapping[str, Any]]) -> list[str]:
    """Keys, beside those with columns of their own, that have several values."""
    values: dict[str, set[Any]] = {}
    for keys in described:
        for key, value in keys.items():
            if not key.startswith(OWN):
                values.setdefault(key, set()).add(value)
    return [key for key, found in values.items() if len(found) > 1]


def _questions(run: Run) -> str:
    """The question set in a few words: what was set, and the first digits of the words' hash."""
    chosen = dict(run.question_set)
    words = str(chosen.pop("words", ""))[:6]
    return ",".join([*(f"{k}:{v}" for k, v in chosen.items() if v is not None), words])


def _settings(runs: Sequence[Run]) -> list[str]:
    """Each run's setting: its identity without the seed and without which tasks and queries were asked.

    A run that has not come to its questions' words gets the setting of one that is like it in all else.
    """
    found, alike = [], {}
    for run in runs:
        kept = {key: value for key, value in run.identity.items() if key not in ("seed", "eval")}
        asked = run.question_set if kept else {}
        words = {"words": asked.pop("words", None)}
        found.append((json.dumps([kept, asked], sort_keys=True), json.dumps([kept, asked | words], sort_keys=True)))
        if run.done:
            alike[found[-1][0]] = found[-1][1]
    return [
        (full if run.done else alike.get(likeness, full)) if run.identity else ""
        for run, (likeness, full) in zip(runs, found, strict=True)
    ]


def accuracy_frame(runs: Sequence[Run], about: pd.DataFrame) -> pd.DataFrame:
    """A row for each done run, model, task and query, and for each role (task "mean" of its tasks).

    Columns: those of `about` that name the run, model, role, task, query, acc, stderr, and difference, low, high and p
    against the base model (paired by question). A role's interval takes its tasks' as independent.
    """
    named = about.set_index("number")[["run", "seed", *SETTING]].to_dict("index")
    rows: list[dict[str, Any]] = []
    for number, run in enumerate(runs):
        if not run.done:
            continue
        for model in ("base", "unlearned"):
            for role, tasks in run.roles.items():
                for query in run.queries:
                    found = [_accuracy(run.metrics, model, task, query) for task in tasks]
                    known = [row for row in found if row is not None]
                    common = {"number": number, **named[number], "model": model, "role": role, "query": query}
                    rows += [common | row for row in known]
                    if known and len(known) == len(tasks):
                        rows.append(common | _mean(known))
    return pd.DataFrame(rows)


def _accuracy(metrics: Mapping[str, float], model: str, task: str, query: str) -> dict[str, Any] | None:
    """One task's accuracy and difference from the base model, in percent and points."""
    name = f"{model}/{task}/{query}/"
    if f"{name}acc" not in metrics:
        return None
    against = {k: 100 * metrics.get(f"{name}base_{k}", math.nan) for k in ("difference", "low", "high")}
    accuracy, error = 100 * metrics[f"{name}acc"], 100 * metrics.get(f"{name}acc_stderr", math.nan)
    return {"task": task, "acc": accuracy, "stderr": error, **against, "p": metrics.get(f"{name}base_p", math.nan)}


def _mean(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A role's row: means over its tasks."""
    count = len(rows)
    error = math.sqrt(sum(row["stderr"] ** 2 for row in rows)) / count
    difference = sum(row["difference"] for row in rows) / count
    half = math.sqrt(sum(((row["high"] - row["low"]) / 2) ** 2 for row in rows)) / count
    interval = {k: rows[0][k] for k in ("low", "high", "p")}
    if count > 1:
        interval = {"low": difference - half, "high": difference + half, "p": math.nan}
    return {"task": "mean", "acc": sum(row["acc"] for row in rows) / count, "stderr": error} | {
        "difference": difference,
        **interval,
    }


def over_seeds(accuracies: pd.DataFrame, about: pd.DataFrame) -> pd.DataFrame:
    """A row for each setting, model, role, task and query: mean, stderr, low, high, interval, seeds, missing.

    Of several seeds, standard error and 95 % interval (Student's t) are those of the mean over seeds; of one, and of
    the base model, which has none, of the accuracy over questions. Intervals end at 0 and 100 %. `missing` tells which
    seeds other settings have and this one lacks, and why.
    """
    if accuracies.empty:
        return pd.DataFrame()
    keys = [*SETTING, "model", "role", "task", "query"]
    grouped = accuracies.groupby(keys, sort=False, dropna=False)
    found = grouped.agg(mean=("acc", "mean"), std=("acc", "std"), seeds=("acc", "size"), stderr=("stderr", "mean"))
    found = found.reset_index()
    several = (found["seeds"] > 1) & (found["model"] != "base")
    found["stderr"] = (found["std"] / found["seeds"] ** 0.5).where(several, found["stderr"])
    width = pd.Series(stats.t.ppf((1 + CONFIDENCE) / 2, (found["seeds"] - 1).clip(lower=1))).where(several, 1.96)
    half = width * found["stderr"]
    found["low"], found["high"] = (found["mean"] - half).clip(lower=0), (found["mean"] + half).clip(upper=100)
    found["interval"] = several.map({True: "over seeds", False: "over questions"})
    found["missing"] = found["setting"].map(missing_seeds(about)).fillna("")
    return found.drop(columns="std").round(DIGITS)


def missing_seeds(about: pd.DataFrame) -> dict[str, str]:
    """For each setting the seeds that it should have and lacks, with the reason.

    It should have those that were begun or planned for it, and those that at least half of all settings have.
    """
    known = about[about["setting"] != ""]
    usual = known.groupby("seed")["setting"].nunique() * 2 >= known["setting"].nunique()
    found = {}
    for setting, group in known.groupby("setting", sort=False):
        status = dict(zip(group["seed"], group["status"], strict=True))
        expected = sorted({*usual.index[usual], *status})
        lacking = [f"seed {s} {status.get(s, 'not there')}" for s in expected if status.get(s) != "done"]
        found[str(setting)] = ", ".join(lacking)
    return found
