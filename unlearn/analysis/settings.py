"""Runs as settings: all that determines a result but the seed, and the keys in which runs differ."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from unlearn.analysis.collect import OF_QUESTIONS, Run
from unlearn.arguments import is_number
from unlearn.records.scores import flat
from unlearn.storage.hashing import json_sha256

METHODS = {
    "rmu": "RMU",
    "adaptive_rmu": "Adaptive RMU",
    "rsv": "RSV",
    "npo": "NPO",
    "simnpo": "SimNPO",
    "dpo": "DPO",
    "grad_diff": "GradDiff",
}
SETTING = ["setting", "method", "coefficient", "nu", "other"]  # columns that tell settings apart
UNNAMED = ("method._target_", "seed", "results_version", "eval.")  # not among the keys of a setting
OWN_COLUMNS = ("method.name", "rna.nu")
FACTS = ("weights", "corpora", "questions")
SHOWN_LETTERS = 8  # of a hash
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Setting:
    """What the runs of several seeds have in common.

    Attributes:
        config: dotted keys of the configuration and their values, without the seed and what was asked.
        facts: hashes of the model's weights, of the corpora, and of the questions, as far as they are known.
    """

    config: frozenset[tuple[str, Any]]
    facts: frozenset[tuple[str, str]] = frozenset()

    def without(self, *keys: str) -> Setting:
        """The setting without these keys and those below them: what settings that differ in these alone share."""
        below = tuple(f"{key}." for key in keys)
        kept = ((key, value) for key, value in self.config if key not in keys and not key.startswith(below))
        return replace(self, config=frozenset(kept))

    def get(self, key: str) -> Any:
        """The value of a dotted key; None if it has none."""
        return dict(self.config).get(key)


def run_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """A row for each run, whatever its status.

    Columns: number, run, folder, status, why, method, coefficient (its numeric arguments, as text), nu, seed, other
    (what else tells these runs apart, as text), setting, world (which model was asked what), and each dotted key in
    which the runs differ.
    """
    keys = [_keys(run) for run in runs]
    facts = [_facts(run) if run.done else {} for run in runs]
    rows = []
    for number, (run, own, setting) in enumerate(zip(runs, keys, _settings(runs, keys, facts), strict=True)):
        arguments = {k: v for k, v in own.items() if k.startswith("method.") and is_number(v)}
        rows.append(
            {
                "number": number,
                "run": run.folder.name,
                "folder": str(run.folder),
                "status": run.status,
                "why": run.why,
                "method": _method_of(run, own) if run.identity else "",
                "coefficient": ", ".join(f"{k.removeprefix('method.')}={v:g}" for k, v in arguments.items()),
                "nu": own.get("rna.nu", math.nan),
                "seed": run.identity.get("seed", math.nan),
                "setting": setting,
                "world": _world(run, facts[number]) if run.done else "",
            }
        )
    about = pd.DataFrame(rows)
    for key in dict.fromkeys(key for own in keys for key in own if key not in OWN_COLUMNS):
        values = [own.get(key) for own in keys]
        if key.startswith("method.") or len({str(v) for v, own in zip(values, keys, strict=True) if own}) > 1:
            about[key] = values
    for fact in FACTS:
        about[fact] = [own.get(fact, "")[:SHOWN_LETTERS] for own in facts]
    columns = about[telling_keys(about)]
    about["other"] = [differences(row) for row in columns.to_dict("records")]
    return about


def _method_of(run: Run, keys: Mapping[str, Any]) -> str:
    """The method's name. With a placebo in place of RNA it is another method, which no figure takes for RNA.

    So it is for an adopted checkpoint, of whose training only that is known which its user gave.
    """
    name, place = method_name(run.identity["method"]["name"]), keys.get("rna.where")
    name = name if place is None else f"{name}, noise on the {str(place).replace('_', ' ')}"
    return f"{name}, adopted" if run.adopted else name


def method_name(key: str) -> str:
    """The method's name as in the paper; other methods keep their own name."""
    return METHODS.get(key, key)


def telling_keys(about: pd.DataFrame) -> list[str]:
    """The keys beside method, arguments and nu that tell the finished runs apart, as few as will do.

    A key that follows from the ones before it, as the learning rate may from the method, tells nothing more.
    """
    done = about[about["status"] == "done"]
    done = done if len(done) else about[about["method"] != ""]
    groups = done.groupby(["method", "coefficient", "nu"], dropna=False, sort=False).ngroup()
    telling = []
    for key in about.columns[list(about.columns).index("world") + 1 :]:
        if key == "other" or (key.startswith("method.") and pd.api.types.is_numeric_dtype(about[key])):
            continue
        finer = pd.Series(pd.factorize(groups.astype(str) + "=" + done[key].map(str))[0], index=done.index)
        if finer.nunique() > groups.nunique():
            telling.append(str(key))
            groups = finer
    return telling


def differences(row: Mapping[Any, Any], left_out: str = "") -> str:
    """`KEY=VALUE; ...` of those keys that have a value, but for one."""
    values = {key: v for key, v in row.items() if key != left_out and v not in (None, "") and v == v}
    return "; ".join(f"{key}={value:g}" if is_number(value) else f"{key}={value}" for key, value in values.items())


def _keys(run: Run) -> dict[str, Any]:
    """The dotted keys of a run's configuration that determine its result, numbers as floats: c=3 and c=3.0 are one."""
    keys = {}
    asked = tuple(f"eval.{key}" for key in OF_QUESTIONS)
    for key, value in flat(run.identity, ".").items():
        if not key.startswith(UNNAMED) or key in asked:
            keys[key] = json.dumps(value) if isinstance(value, list) else float(value) if is_number(value) else value
    if not keys.get("rna.nu", 1):  # without noise, its other keys have no meaning
        keys = {key: value for key, value in keys.items() if key == "rna.nu" or not key.startswith("rna.")}
    return keys


def _facts(run: Run) -> dict[str, str]:
    asking = next((evaluation for evaluation in run.evaluations if evaluation.questions), None)
    asked = {query: asking.questions.get(query) for query in ("default", "perturbed")} if asking else {}
    inputs = run.record["inputs"]
    return {
        "weights": str(inputs.get("model")),
        "corpora": UNKNOWN if run.adopted else json_sha256(inputs.get("data")),
        "questions": json_sha256(asked),
    }


def _world(run: Run, facts: Mapping[str, str]) -> str:
    """The world of a run: its model and its questions. Figures that compare methods are of one world."""
    return " ".join([run.identity["model"]["name"], facts["weights"], facts["questions"]])


def _settings(
    runs: Sequence[Run], keys: Sequence[Mapping[str, Any]], facts: Sequence[Mapping[str, str]]
) -> list[Setting | None]:
    """Each run's setting; None where nothing is known of it.

    A run that has no results gets the setting of one that has, and that has the same keys.
    """
    by_keys: dict[frozenset[tuple[str, Any]], Setting] = {}
    settings: list[Setting | None] = []
    for own, known in zip(keys, facts, strict=True):
        config = frozenset((k, v) for k, v in own.items() if not k.startswith("eval."))
        settings.append(Setting(config, frozenset(known.items())) if own else None)
    for run, own, setting in zip(runs, keys, settings, strict=True):
        if run.done and setting is not None:
            by_keys.setdefault(frozenset(own.items()), setting)
    return [
        setting if run.done or setting is None else by_keys.get(frozenset(own.items()), setting)
        for run, own, setting in zip(runs, keys, settings, strict=True)
    ]


def missing_seeds(about: pd.DataFrame) -> dict[Setting, str]:
    """For each setting, the seeds that it lacks, with the reason.

    It should have the seeds that were begun or planned for it, and those that at least half of all settings have.
    """
    finished = about[about["setting"].notna()]
    usual = finished.groupby("seed")["setting"].nunique() * 2 >= finished["setting"].nunique()
    missing = {}
    for setting, group in finished.groupby("setting", sort=False):
        status: dict[Any, str] = {}
        for seed, now in zip(group["seed"], group["status"], strict=True):
            status[seed] = now if status.get(seed) != "done" else "done"
        expected = sorted({*usual.index[usual], *status})
        lacking = [f"seed {s:g} {status.get(s, 'not there')}" for s in expected if status.get(s) != "done"]
        missing[setting] = (
            "" if group["seed"].isna().any() else ", ".join(lacking)
        )  # of an unknown seed none is missing
    return missing
