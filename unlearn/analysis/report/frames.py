"""Runs as tables: a row for each run, each accuracy, and each setting with its seeds together.

A setting is all that determines a result but the seed: the configuration, weights and corpora, and the questions and
tasks that were asked. Roles (retain, near, forget) have the mean of their tasks' accuracies. Accuracies are in percent.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from scipy import stats

from unlearn.analysis.collect import Run
from unlearn.arguments import is_number
from unlearn.config.schema import as_float
from unlearn.evaluate.statistics import CONFIDENCE, NORMAL

METHODS = {
    "rmu": "RMU",
    "adaptive_rmu": "Adaptive RMU",
    "rsv": "RSV",
    "npo": "NPO",
    "simnpo": "SimNPO",
    "dpo": "DPO",
    "grad_diff": "GradDiff",
}
DIGITS = 4  # of what is shown, behind the point
SEPARATOR = "; "  # between the parts of `other`
SETTING = ["setting", "method", "coefficient", "nu", "other"]
MEAN = "mean"  # the task of a role's row
BY_METHOD = ("train.lr", "loss.alpha", "model.layer")  # conf/model has a value of its own for each method
# Keys that have columns of their own, or that say what was asked.
OWN = ("method.name", "method._target_", "rna.nu", "seed", "eval.", "results_version")


def method_name(key: str) -> str:
    """The method's name as in the paper; other methods keep their own name."""
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
    runs, as text), setting, world (which model was asked what), and the method's numeric arguments and other differing
    numeric keys under their dotted names.
    """
    described = [flat(run.identity) for run in runs]
    facts = _facts(runs)
    differing, uncertain = _differing(described), _differing_facts(facts)
    rows = []
    for number, (run, keys, setting) in enumerate(zip(runs, described, _settings(runs, facts), strict=True)):
        arguments = {k: v for k, v in keys.items() if k.startswith("method.") and is_number(v)}
        other = {k: keys[k] for k in differing if k in keys and k not in arguments}
        said = {**other, **{k: facts[number][k] for k in uncertain if k in facts[number]}}
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
                "other": SEPARATOR.join(f"{k}={v}" for k, v in said.items()),
                "setting": setting,
                "world": _world(run, facts[number]) if run.done else "",
                **arguments,
                **{k: v for k, v in other.items() if is_number(v)},
            }
        )
    return pd.DataFrame(rows)


def _differing(described: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys, beside those with columns of their own, that have several values; what a method determines, among its runs.

    A key that only some runs have differs, too.
    """
    known = [keys for keys in described if keys]
    found = []
    for key in dict.fromkeys(key for keys in known for key in keys if not key.startswith(OWN)):
        having = [keys for keys in known if key in keys]
        if key.startswith("method.") or key in BY_METHOD:
            values = {(keys["method.name"], keys[key]) for keys in having}
            differs = len(values) > len({method for method, _ in values})
        else:
            differs = len({keys[key] for keys in having}) > 1 or len(having) < len(known)
        # Without noise, the meaning of nu does not matter.
        if key == "rna.scale":
            differs = len({keys[key] for keys in having if keys.get("rna.nu")}) > 1
        if differs:
            found.append(key)
    return found


def _facts(runs: Sequence[Run]) -> list[dict[str, str]]:
    """Of each run, hashes, shortened, of what determines its figures and is not in its configuration.

    The questions' content is left out if it is not known of all: runs of older versions have no hash of it.
    """
    known = all(run.content for run in runs if run.done and run.question_set)
    return [
        {**_facts_of(run), **({"content": str(run.content)[:8]} if known else {})} if run.done else {} for run in runs
    ]


def _facts_of(run: Run) -> dict[str, str]:
    asked = {k: v for k, v in run.question_set.items() if v is not None}
    words = str(asked.pop("words", ""))[:6]
    return {
        "weights": str(run.record["inputs"].get("model"))[:8],
        "corpora": _hash(run.record["inputs"].get("data")),
        "questions": ",".join([*(f"{k}:{v}" for k, v in asked.items()), *([words] if words else [])]),
        "tasks": " ".join(f"{role}:{','.join(tasks)}" for role, tasks in run.own_roles.items()),
    }


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def _differing_facts(facts: Sequence[Mapping[str, str]]) -> list[str]:
    known = [fact for fact in facts if fact]
    return [name for name in (known[0] if known else ()) if len({fact[name] for fact in known}) > 1]


def _world(run: Run, facts: Mapping[str, str]) -> str:
    """The world of a run: its model and its questions. Figures that compare methods are of one world."""
    kept = ("weights", "questions", "tasks", "content")
    return json.dumps([run.identity["model"]["name"], *(facts[k] for k in kept if k in facts)])


def _settings(runs: Sequence[Run], facts: Sequence[Mapping[str, str]]) -> list[str]:
    """Each run's setting, as JSON of its configuration and of its facts.

    A run that has no results gets the setting of one that has, and is like it in all that is known of both.
    """
    found: list[tuple[str, str]] = []
    alike: dict[str, str] = {}
    for run, known in zip(runs, facts, strict=True):
        kept = {key: _floats(value) for key, value in run.identity.items() if key not in ("seed", "eval")}
        if not kept.get("rna", {}).get("nu", 1):
            kept["rna"] = {"nu": 0.0}  # whatever scale it would be of
        likeness = json.dumps([kept, {k: v for k, v in run.question_set.items() if k != "words"}], sort_keys=True)
        found.append((likeness, json.dumps([kept, known], sort_keys=True)))
        if run.done:
            alike.setdefault(*found[-1])
    return [
        (full if run.done else alike.get(likeness, full)) if run.identity else ""
        for run, (likeness, full) in zip(runs, found, strict=True)
    ]


def _floats(value: Any) -> Any:
    """Convert all numbers to floats, so that c=3 and c=3.0 are one setting."""
    if isinstance(value, dict):
        return {key: _floats(inner) for key, inner in value.items()}
    return as_float(value)


def without(setting: str, *keys: str) -> str:
    """A setting without dotted keys: what all that differ in these alone, as points of a curve, have in common."""
    parts = json.loads(setting)
    for key in keys:
        *parents, last = key.split(".")
        place = parts[0]
        for parent in parents:
            place = place.get(parent, {})
        place.pop(last, None)
    return json.dumps(parts, sort_keys=True)


def accuracy_frame(runs: Sequence[Run], about: pd.DataFrame) -> pd.DataFrame:
    """A row for each done run, model, task and query, and for each role (task "mean" of its tasks).

    Columns: those of `about` that name the run, model, role, task, query, acc, stderr, and difference, low, high and p
    against the base model (paired by question). A role's interval takes its tasks' as independent.
    """
    named = about.set_index("number")[["run", "seed", "world", *SETTING]].to_dict("index")
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
    return {"task": MEAN, "acc": sum(row["acc"] for row in rows) / count, "stderr": error} | {
        "difference": difference,
        **interval,
    }


def over_seeds(accuracies: pd.DataFrame, about: pd.DataFrame) -> pd.DataFrame:
    """A row for each setting, model, role, task and query: mean, stderr, low, high, interval, seeds, missing.

    Each seed counts once, however many runs repeat it. Of several seeds, standard error and 95 % interval (Student's t)
    are those of the mean over seeds; of one, and of the base model, which has none, of the accuracy over questions.
    Intervals end at 0 and 100 %. `missing` tells which seeds other settings have and this one lacks, and why.
    """
    if accuracies.empty:
        return pd.DataFrame()
    keys = [*SETTING, "world", "model", "role", "task", "query"]
    once = accuracies.drop_duplicates([*keys, "seed"])
    grouped = once.groupby(keys, sort=False, dropna=False)
    found = grouped.agg(mean=("acc", "mean"), std=("acc", "std"), seeds=("acc", "size"), stderr=("stderr", "mean"))
    found = found.reset_index()
    several = (found["seeds"] > 1) & (found["model"] != "base")
    found["stderr"] = (found["std"] / found["seeds"] ** 0.5).where(several, found["stderr"])
    width = pd.Series(stats.t.ppf((1 + CONFIDENCE) / 2, (found["seeds"] - 1).clip(lower=1))).where(several, NORMAL)
    half = width * found["stderr"]
    found["low"], found["high"] = (found["mean"] - half).clip(lower=0), (found["mean"] + half).clip(upper=100)
    found["interval"] = several.map({True: "over seeds", False: "over questions"})
    found["missing"] = found["setting"].map(missing_seeds(about)).fillna("")
    return found.drop(columns="std").round(DIGITS)


def missing_seeds(about: pd.DataFrame) -> dict[str, str]:
    """For each setting, the seeds that it lacks, with the reason.

    It should have the seeds that were begun or planned for it, and those that at least half of all settings have.
    """
    known = about[about["setting"] != ""]
    usual = known.groupby("seed")["setting"].nunique() * 2 >= known["setting"].nunique()
    found = {}
    for setting, group in known.groupby("setting", sort=False):
        status: dict[Any, str] = {}
        for seed, now in zip(group["seed"], group["status"], strict=True):
            status[seed] = now if status.get(seed) != "done" else "done"
        expected = sorted({*usual.index[usual], *status})
        lacking = [f"seed {s:g} {status.get(s, 'not there')}" for s in expected if status.get(s) != "done"]
        found[str(setting)] = ", ".join(lacking)
    return found


def repeated_seeds(about: pd.DataFrame) -> int:
    """How many done runs repeat the seed of another one of their setting."""
    done = about[about["status"] == "done"]
    return int(done.duplicated(["setting", "seed"]).sum())
