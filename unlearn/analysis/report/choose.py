"""Which settings stand for a method in Figures 1 and 4 and Table 1: one without RNA, and one with it.

Both share everything but RNA. Where several coefficients or nu were run, those are chosen whose RNA model has the
highest accuracy on retained knowledge under perturbation less that on forgotten knowledge; on the same questions that
are then shown, so it is a little optimistic, and the page says so.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import pandas as pd

from unlearn.analysis.report.frames import MEAN, without


@dataclass(frozen=True)
class Chosen:
    """A method's settings (see `frames.py`), or None. `of` is the number of settings that were chosen from."""

    method: str
    coefficient: str
    other: str
    plain: str | None
    rna: str | None
    nu: float | None
    of: int

    @property
    def settings(self) -> dict[str, bool]:
        """{setting: whether it has RNA}."""
        return {setting: rna for setting, rna in ((self.plain, False), (self.rna, True)) if setting is not None}

    def __str__(self) -> str:
        noise = [] if self.nu is None else [f"ν = {self.nu:g}"]
        return ", ".join([f"{self.method} {self.coefficient}".rstrip(), *noise, *([self.other] if self.other else [])])


def choose(means: pd.DataFrame) -> list[Chosen]:
    """One choice for each method, in the order of the frame of means over seeds, which is of one world."""
    if means.empty:
        return []
    settings = means.drop_duplicates("setting")[["setting", "method", "coefficient", "nu", "other"]].copy()
    settings["score"] = settings["setting"].map(_scores(means))
    settings["family"] = [family(setting) for setting in settings["setting"]]
    return [_of_method(str(method), group) for method, group in settings.groupby("method", sort=False)]


def family(setting: str) -> str:
    """What a setting has in common with those that differ in nothing but RNA: its configuration and corpora."""
    configuration, facts = json.loads(without(setting, "rna"))
    return json.dumps([configuration, facts.get("corpora")])


def _scores(means: pd.DataFrame) -> pd.Series:
    """Setting -> accuracy on retained knowledge under perturbation less that on forgotten; without the latter if none
    has it.
    """
    of = means[(means["model"] == "unlearned") & (means["task"] == MEAN)]
    retain = of[(of["role"] == "retain") & (of["query"] == "perturbed")].set_index("setting")["mean"]
    forget = of[(of["role"] == "forget") & (of["query"] == "default")].set_index("setting")["mean"]
    return retain.sub(forget) if len(forget) else retain


def _of_method(method: str, group: pd.DataFrame) -> Chosen:
    """The family with both, else with RNA, else any; in it the best with RNA."""
    noisy, plain = group[group["nu"] > 0], group[group["nu"] == 0]
    both = noisy[noisy["family"].isin(set(plain["family"]))]
    candidates = next(part for part in (both, noisy, plain) if len(part))
    best = candidates.sort_values("score", ascending=False, na_position="last", kind="stable").iloc[0]
    beside = plain[plain["family"] == best["family"]]
    with_rna = best["nu"] > 0
    return Chosen(
        method,
        str(best["coefficient"]),
        str(best["other"]),
        str(beside["setting"].iloc[0]) if len(beside) else None,
        str(best["setting"]) if with_rna else None,
        float(best["nu"]) if with_rna else None,
        len(candidates),
    )
