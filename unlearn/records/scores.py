"""Scores, a row for each model, task, query and measure, and their file, RUN/scores.parquet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa  # type: ignore[import-untyped]

from unlearn.errors import UserError
from unlearn.records.tables import read_rows, write_rows

if TYPE_CHECKING:
    import pandas as pd

SCORES = "scores.parquet"
PLACE = ("model", "role", "task", "part_of", "query")  # the columns that say what was measured where
REQUIRED = ("model", "role", "task", "query", "measure", "value")  # columns without empty cells
KEY = (*PLACE, "measure", "against")  # no two rows of an evaluation agree in these
TRUNCATED = "truncated"  # a measure: how many questions lost their beginning
NOT_FINITE = "not_finite"  # a measure: how many questions or texts have log-likelihoods that are NaN or infinite
MAXLOGIT_NOT_FINITE = "maxlogit_not_finite"  # the same of MaxLogits
AGREEMENT = "agreement"  # a measure: the share of next tokens at which the model's first choice is the base model's
COUNTS = (TRUNCATED, NOT_FINITE, MAXLOGIT_NOT_FINITE)  # measures that count questions of n
NAMED = 5  # places that the sentence on numbers that are not finite names
Metrics = dict[str, dict[str, dict[str, dict[str, float]]]]  # model -> task -> query -> measure -> value


@dataclass(frozen=True)
class Score:
    """One measure of one model on the questions of one task.

    Args:
        model: "base" or "unlearned".
        role: of the task in this evaluation, for example "retain" or "forget"; "retain_text" for held-out texts.
        task: a task or group of lm-eval, or a held-out corpus.
        part_of: the group that the task is a part of; None for what `eval.tasks` and `eval.texts` name.
        query: the kind of question: "default", "perturbed", ...
        measure: "acc" (a share of 1), "nats" (a token), "agreement" (a share of 1, of the unlearned model on texts),
            "maxlogit_mean", any other metric of lm-eval, or one of `COUNTS`. A place with a count "not_finite" has no
            metric: a part of its questions has no answer.
        against: None for a value itself. "base" or "default" for the paired difference of the measure from that of the
            base model, or of the default query.
        stderr: the standard error of the value over questions.
        low, high, p: of a difference, its 95 % interval and the p-value of the paired test.
        n: the number of questions or texts.
    """

    model: str
    role: str
    task: str
    part_of: str | None
    query: str
    measure: str
    value: float
    against: str | None = None
    stderr: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    n: int | None = None


SCHEMA = pa.schema(
    [(name, pa.string()) for name in (*PLACE, "measure")]
    + [("value", pa.float64()), ("against", pa.string())]
    + [(name, pa.float64()) for name in ("stderr", "low", "high", "p")]
    + [("n", pa.int64())]
)
assert SCHEMA.names == [field.name for field in fields(Score)]


def write_scores(folder: Path, scores: Iterable[Score]) -> None:
    """Write `folder`/scores.parquet, a row for each score."""
    write_rows(folder / SCORES, [vars(score) for score in scores], SCHEMA)


def read_scores(folder: Path) -> list[Score]:
    """The rows of `folder`/scores.parquet. Raises UserError if it cannot be read or has other columns."""
    return [Score(**row) for row in read_rows(folder / SCORES, SCHEMA, REQUIRED)]


def score_frame(scores: Iterable[Score]) -> pd.DataFrame:
    """The scores as a data frame, with the columns of `Score`."""
    import pandas as pd

    frame = pd.DataFrame([vars(score) for score in scores], columns=SCHEMA.names)
    return frame.astype({**dict.fromkeys(("value", "stderr", "low", "high", "p"), float), "n": "Int64"})


def in_order(scores: Iterable[Score]) -> list[Score]:
    """The scores by role, task, query and model, each in the order in which they first occur."""
    listed = list(scores)
    columns = ("role", "task", "query", "model")
    values = {column: dict.fromkeys(getattr(score, column) for score in listed) for column in columns}
    ranks = {column: {value: rank for rank, value in enumerate(values[column])} for column in columns}
    return sorted(listed, key=lambda score: tuple(ranks[column][getattr(score, column)] for column in columns))


def role_means(
    scores: Iterable[Score], measure: str, *, model: str = "unlearned", against: str | None = None
) -> dict[tuple[str, str], float]:
    """{(role, query): mean of a measure over the tasks of the role}.

    Parts of groups do not count, as their groups do. A role of which a task lacks the measure in a query is left out.
    """
    tasks: dict[str, set[str]] = {}
    values: dict[tuple[str, str], dict[str, float]] = {}
    for score in scores:
        if score.part_of is not None:
            continue
        tasks.setdefault(score.role, set()).add(score.task)
        if (score.model, score.measure, score.against) == (model, measure, against):
            values.setdefault((score.role, score.query), {})[score.task] = score.value
    return {
        (role, query): sum(by_task.values()) / len(by_task)
        for (role, query), by_task in values.items()
        if by_task.keys() == tasks[role]
    }


def not_finite(scores: Iterable[Score]) -> list[Score]:
    """The counts of what was not finite, without those of parts of groups."""
    return [s for s in scores if s.measure in (NOT_FINITE, MAXLOGIT_NOT_FINITE) and s.part_of is None]


def of_all(count: Score) -> str:
    """A count in words."""
    kind = "not finite" if count.measure == NOT_FINITE else "MaxLogits not finite"
    return f"{count.value:.0f} of {count.n} {kind}"


def why_not_finite(scores: Iterable[Score]) -> str | None:
    """A sentence that names the first places at which a model gave numbers that are not finite; None if all are."""
    counts = not_finite(scores)
    named = [f"{s.model} model, {s.task}, {s.query}: {of_all(s)}" for s in counts[:NAMED]]
    more = f"; and {len(counts) - NAMED} more" if len(counts) > NAMED else ""
    return f"Answers that are NaN or infinite give no figure. {'; '.join(named)}{more}." if counts else None


def check_finite(scores: Iterable[Score]) -> None:
    """Raise UserError if a model gave numbers that are not finite."""
    sentence = why_not_finite(scores)
    if sentence is not None:
        raise UserError(sentence)


def nested(scores: Iterable[Score]) -> Metrics:
    """The scores as metrics.json has them, for people: values, standard errors (MEASURE_stderr) and differences."""
    metrics: Metrics = {}
    for score in scores:
        measures = metrics.setdefault(score.model, {}).setdefault(score.task, {}).setdefault(score.query, {})
        if score.against is None:
            measures[score.measure] = score.value
            if score.stderr is not None:
                measures[f"{score.measure}_stderr"] = score.stderr
        else:
            compared = {"difference": score.value, "low": score.low, "high": score.high, "p": score.p}
            prefix = f"{AGREEMENT}_" if score.measure == AGREEMENT else ""  # it stands beside nats
            measures.update({f"{prefix}{score.against}_{k}": v for k, v in compared.items() if v is not None})
    return metrics


def flat(tree: Mapping[str, Any], separator: str = "/", prefix: str = "") -> dict[str, Any]:
    """The values of nested dictionaries under joined names: slashes as W&B wants them, dots as in configurations."""
    names: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            names |= flat(value, separator, f"{prefix}{key}{separator}")
        else:
            names[f"{prefix}{key}"] = value
    return names
