"""Scores as tables: a row for each run's score, and the mean over the seeds of a setting."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

import pandas as pd

from unlearn.analysis.collect import Run
from unlearn.analysis.settings import SETTING, missing_seeds
from unlearn.records.scores import AGREEMENT
from unlearn.statistics.intervals import NORMAL, quantile

MEAN = "mean"  # the task of the rows of a whole role
PLACE = ["model", "role", "task", "query", "measure", "against"]
FIGURES = ["value", "stderr", "low", "high", "p", "n"]
PERCENT = ("acc", AGREEMENT)  # measures that are shown in percent
DIGITS = 4  # of what is shown, behind the point


def scores_of_runs(runs: Sequence[Run]) -> pd.DataFrame:
    """A row for each score of each finished run, and for each role (task "mean" of its tasks).

    Columns: number (of the run), those of `PLACE` and `FIGURES`. `against` is "" for a value itself, whose interval is
    1.96 standard errors to either side. Parts of groups are left out.
    """
    columns = attrgetter(*PLACE, *FIGURES)
    rows = [
        (number, *columns(score)) for number, run in enumerate(runs) for score in run.scores if score.part_of is None
    ]
    frame = pd.DataFrame(rows, columns=["number", *PLACE, *FIGURES]).astype(dict.fromkeys(FIGURES, float))
    frame["against"] = frame["against"].fillna("")
    values = frame["against"] == ""
    for bound, sign in (("low", -1), ("high", 1)):
        frame[bound] = frame[bound].where(~values, frame["value"] + sign * NORMAL * frame["stderr"])
    return pd.concat([frame, _role_means(frame)], ignore_index=True)


def _role_means(frame: pd.DataFrame) -> pd.DataFrame:
    """The means over the tasks of each role, of those that have a value for every task. Tasks are independent."""
    by = ["number", *(column for column in PLACE if column != "task")]
    squares = frame.assign(stderr=frame["stderr"] ** 2, half=((frame["high"] - frame["low"]) / 2) ** 2)
    groups = squares.groupby(by, sort=False)
    means = groups.agg(
        value=("value", "mean"),
        tasks=("task", "size"),
        stderr=("stderr", "sum"),
        half=("half", "sum"),
        n=("n", "sum"),
        low=("low", "first"),
        high=("high", "first"),
        p=("p", "first"),
    ).reset_index()
    of_role = frame.groupby(["number", "role"])["task"].nunique().rename("of_role")
    means = means.join(of_role, on=["number", "role"])
    several, half = means["tasks"] > 1, means["half"] ** 0.5 / means["tasks"]
    means["stderr"] = means["stderr"] ** 0.5 / means["tasks"]
    means["low"] = (means["value"] - half).where(several, means["low"])
    means["high"] = (means["value"] + half).where(several, means["high"])
    means["p"] = means["p"].mask(several)
    return means[means["tasks"] == means["of_role"]].assign(task=MEAN)[["number", *PLACE, *FIGURES]]


def over_seeds(scores: pd.DataFrame, about: pd.DataFrame) -> pd.DataFrame:
    """A row for each setting and place: mean, stderr, low, high, interval, seeds, missing; accuracies in percent.

    Each seed counts once, however many runs repeat it. Of several seeds, standard error and 95 % interval (Student's t)
    are those of the mean over seeds; of one, and of the base model, which has none, they are over questions.
    Intervals of accuracies end at 0 and 100 %. `missing` tells which seeds a setting lacks, and why.
    """
    if scores.empty:
        return pd.DataFrame(columns=[*SETTING, "world", *PLACE, "mean", "low", "high", "seeds", "missing"])
    named = scores.merge(about[["number", "seed", "world", *SETTING]], on="number")
    keys = [*SETTING, "world", *PLACE]
    groups = named.drop_duplicates([*keys, "seed"]).groupby(keys, sort=False, dropna=False)
    means = groups.agg(
        mean=("value", "mean"),
        std=("value", "std"),
        seeds=("value", "size"),
        stderr=("stderr", "mean"),
        low=("low", "first"),
        high=("high", "first"),
    ).reset_index()
    several = (means["seeds"] > 1) & (means["model"] != "base")
    means["stderr"] = (means["std"] / means["seeds"] ** 0.5).where(several, means["stderr"])
    half = quantile((means["seeds"] - 1).clip(lower=1)) * means["stderr"]
    means["low"] = (means["mean"] - half).where(several, means["low"])
    means["high"] = (means["mean"] + half).where(several, means["high"])
    means["interval"] = several.map({True: "over seeds", False: "over questions"})
    means["missing"] = means["setting"].map(missing_seeds(about)).fillna("")
    share = means["measure"].isin(PERCENT)
    for column in ("mean", "stderr", "low", "high"):
        means[column] = means[column].where(~share, 100 * means[column])
    value = share & (means["against"] == "")
    means["low"] = means["low"].mask(value, means["low"].clip(lower=0))
    means["high"] = means["high"].mask(value, means["high"].clip(upper=100))
    return means.drop(columns="std").round(DIGITS)
