"""Which settings stand for a method in Figures 1 and 4 and Table 1: one without RNA, and one with it.

Both share everything but nu. Where several coefficients or nu were run, those are chosen whose RNA model has the
highest accuracy on retained under perturbation less that on forgotten knowledge; on the same questions that are then
shown, so it is a little optimistic, and the page says so.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import pandas as pd

ROLE_MEAN = "mean"


@dataclass(frozen=True)
class Chosen:
    """A method's settings (see `unlearn.report.frames`), None where there is none; `of` counts what it chose from."""

    method: str
    coefficient: str
    plain: str | None
    rna: str | None
    nu: float | None
    of: int

    @property
    def settings(self) -> dict[str, str]:
        """What is there: setting -> label."""
        labelled = {self.plain: self.method, self.rna: f"{self.method} + RNA"}
        return {setting: label for setting, label in labelled.items() if setting is not None}


def choose(means: pd.DataFrame) -> list[Chosen]:
    """One choice for each method, in the order of the frame of means over seeds."""
    if means.empty:
        return []
    scores = _scores(means)
    settings = means.drop_duplicates("setting")[["setting", "method", "coefficient", "nu"]].copy()
    settings["score"] = settings["setting"].map(scores).fillna(float("-inf"))
    families = [json.loads(without(s, "rna.nu")) for s in settings["setting"]]
    settings["family"], settings["questions"] = ([json.dumps(f[i]) for f in families] for i in (0, 1))
    return [_of_method(str(method), group) for method, group in settings.groupby("method", sort=False)]


def _scores(means: pd.DataFrame) -> pd.Series:
    """Setting -> accuracy on retained knowledge under perturbation less that on forgotten knowledge."""
    of = means[(means["model"] == "unlearned") & (means["task"] == ROLE_MEAN)]
    retain = of[(of["role"] == "retain") & (of["query"] == "perturbed")].set_index("setting")["mean"]
    forget = of[(of["role"] == "forget") & (of["query"] == "default")].set_index("setting")["mean"]
    return retain.sub(forget, fill_value=0.0)


def without(setting: str, key: str) -> str:
    """A setting less a dotted key: what all points of a curve over that key have in common."""
    parts = json.loads(setting)
    *parents, last = key.split(".")
    place = parts[0]
    for parent in parents:
        place = place.get(parent, {})
    place.pop(last, None)
    return json.dumps(parts, sort_keys=True)


def _of_method(method: str, group: pd.DataFrame) -> Chosen:
    """The family with both, else with RNA, else any; in it the best with RNA."""
    noisy, plain = group[group["nu"] > 0], group[group["nu"] == 0]
    both = noisy[noisy["family"].isin(set(plain["family"]))]
    candidates = next(part for part in (both, noisy, plain) if len(part))
    best = candidates.loc[candidates["score"].idxmax()]
    beside = plain[plain["family"] == best["family"]]
    beside = beside.sort_values(
        "questions", key=lambda q: q != best["questions"], kind="stable"
    )  # if they can be paired
    with_rna = best["nu"] > 0
    return Chosen(
        method,
        str(best["coefficient"]),
        str(beside["setting"].iloc[0]) if len(beside) else None,
        str(best["setting"]) if with_rna else None,
        float(best["nu"]) if with_rna else None,
        len(candidates),
    )
