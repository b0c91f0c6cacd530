"""Scores under attack: RUN/attacks/NAME-HASH/scores.parquet, and attack.json beside it.

A row is a `Score` of one model at one level of an attack, with three columns before it: `attack`, `level` and
`level_name`. Models are "unlearned", "base", and "retrained" where one was given. The attack "none" has the scores
without an attack, at level 0. Rows that are part of HALVES are means of one half of a role's items. Recovery is the
difference of two rows of one run that agree in `questions` (see `AttackAbout`), model, role, task, query and measure:
one of the attack less one of "none". HASH stands for all that determines the rows. `attack_frame` gives all rows of a
run, with the attack's arguments as columns "attack.KEY".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import pyarrow as pa  # type: ignore[import-untyped]
from pydantic import ConfigDict, TypeAdapter

from unlearn.records import scores
from unlearn.records.samples import Sample, half_of
from unlearn.records.scores import SCORES, Score
from unlearn.records.tables import read_rows, write_rows
from unlearn.storage.files import write_json
from unlearn.storage.schema import Name, Tree, read_as

if TYPE_CHECKING:
    import pandas as pd

ATTACKS = "attacks"  # the folder inside a run's
ABOUT = "attack.json"
NOT_ATTACKED = "none"  # the name under which the scores without an attack are kept
HALVES = "halves"  # `Score.part_of` of scores of one half of the items, whose task is "half 0" or "half 1"
NOT_NAMED = ("levels", "bound")  # arguments that tell no results apart: a bound only chooses
UNLEARNED, BASE, RETRAINED = "unlearned", "base", "retrained"  # `Score.model`


@dataclass(frozen=True)
class AttackAbout:
    """What attack.json holds.

    Args:
        attack: the name of its file in conf/attack.
        arguments: its keys there, overrides included.
        questions: a hash of the questions and texts of the evaluation. Only scores on the same ones can be compared.
        remark: what a reader has to know of this attack on this model, such as the share that was quantised.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    attack: Name
    questions: str
    arguments: Tree = field(default_factory=dict)
    remark: str | None = None


_ABOUT = TypeAdapter(AttackAbout)


@dataclass(frozen=True)
class AttackScore:
    """A score at one level of an attack: a number (bits, steps, a layer), and its name in words."""

    attack: str
    level: float
    level_name: str
    score: Score


SCHEMA = pa.schema(
    [("attack", pa.string()), ("level", pa.float64()), ("level_name", pa.string()), *list(scores.SCHEMA)]
)


def variant_names(attacks: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """A name for each attack and its arguments: with those in which attacks of that name differ, but NOT_NAMED."""
    named = [(name, {k: v for k, v in arguments.items() if k not in NOT_NAMED}) for name, arguments in attacks]
    values: dict[tuple[str, str], set[str]] = {}
    for name, arguments in named:
        for key, value in arguments.items():
            values.setdefault((name, key), set()).add(json.dumps(value))
    return [
        ", ".join([name, *(f"{key}={value}" for key, value in arguments.items() if len(values[name, key]) > 1)])
        for name, arguments in named
    ]


def half_scores(samples: Iterable[Sample]) -> list[Score]:
    """For each role the means over its tasks, of each half of the items and of default queries.

    With them, what is strongest can be chosen on one half and judged on the other.
    """
    values: dict[tuple[str, str, str, int], dict[str, list[float]]] = {}
    for sample in samples:
        if sample.query == "default" and sample.value is not None:
            place = sample.model, sample.role, "acc" if sample.nats is None else "nats", half_of(sample.item)
            values.setdefault(place, {}).setdefault(sample.task, []).append(sample.value)
    return [
        Score(model, role, f"half {half}", HALVES, "default", measure, fmean(map(fmean, by_task.values())))
        for (model, role, measure, half), by_task in values.items()
    ]


def half_value(scores: Iterable[Score], model: str, role: str, measure: str, half: int) -> float | None:
    """What `half_scores` says of a half; None if it was not measured."""
    place = model, role, measure, f"half {half}", HALVES
    found = (s.value for s in scores if (s.model, s.role, s.measure, s.task, s.part_of) == place)
    return next(found, None)


def write_attack(folder: Path, about: AttackAbout, rows: Iterable[AttackScore]) -> None:
    """Write `folder`/attack.json, then `folder`/scores.parquet."""
    write_json(folder / ABOUT, asdict(about))
    write_rows(folder / SCORES, [_columns(row) for row in rows], SCHEMA)


def read_attack(folder: Path) -> tuple[AttackAbout, list[AttackScore]]:
    """What `write_attack` wrote. Raises UserError for files that cannot be read or have other entries."""
    about = read_as(_ABOUT, folder / ABOUT)
    rows = [
        AttackScore(row["attack"], row["level"], row["level_name"], Score(**{name: row[name] for name in _SCORE}))
        for row in read_rows(folder / SCORES, SCHEMA, (*scores.REQUIRED, "attack", "level", "level_name"))
    ]
    return about, rows


def levels_not_finite(rows: Iterable[AttackScore]) -> list[str]:
    """A sentence for each level of an attack at which answers were not finite."""
    levels: dict[tuple[str, str], list[Score]] = {}
    for row in rows:
        levels.setdefault((row.attack, row.level_name), []).append(row.score)
    sentences = {level: scores.why_not_finite(of_level) for level, of_level in levels.items()}
    return [f"{attack}, {name}: {why}" for (attack, name), why in sentences.items() if why is not None]


def attack_folders(run: Path) -> list[Path]:
    """The folders of the attacks on a run of which there are scores."""
    return sorted(file.parent for file in (run / ATTACKS).glob(f"*/{SCORES}"))


def attack_frame(run: Path) -> pd.DataFrame:
    """All scores of a run under attack: the columns of the files, `questions`, and "attack.KEY" for each argument.

    Raises UserError for files that cannot be read.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for folder in attack_folders(run):
        about, attack_scores = read_attack(folder)
        arguments = {f"attack.{key}": value for key, value in about.arguments.items() if key != "levels"}
        rows += [{**_columns(row), "questions": about.questions, **arguments} for row in attack_scores]
    extra = dict.fromkeys(name for row in rows for name in row if name not in SCHEMA.names)
    return pd.DataFrame(rows, columns=[*SCHEMA.names, *(extra or ["questions"])])


_SCORE = tuple(scores.SCHEMA.names)


def _columns(row: AttackScore) -> dict[str, Any]:
    return {"attack": row.attack, "level": row.level, "level_name": row.level_name, **asdict(row.score)}
