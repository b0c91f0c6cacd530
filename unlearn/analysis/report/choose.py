"""Which settings stand for a method in figures and tables that show one of each: one without RNA, and one with it.

Both share everything but RNA. Where several coefficients or nu were run, those are chosen whose RNA model scores best:
accuracy on retained knowledge under perturbation less that on forgotten knowledge; on held-out texts, what forgotten
texts lost less what retained ones lost. The questions are those that are then shown, so the choice is a little
optimistic, and the page says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pandas as pd

from unlearn.analysis.frames import MEAN
from unlearn.analysis.settings import SETTING, Setting
from unlearn.records.names import text_role


@dataclass(frozen=True)
class Chosen:
    """A method's settings, or None. `of` is the number of settings that were chosen from."""

    method: str
    coefficient: str
    other: str
    plain: Setting | None
    rna: Setting | None
    nu: float | None
    of: int

    @property
    def settings(self) -> dict[Setting, bool]:
        """{setting: whether it has RNA}."""
        return {setting: rna for setting, rna in ((self.plain, False), (self.rna, True)) if setting is not None}

    def __str__(self) -> str:
        noise = [] if self.nu is None else [f"ν = {self.nu:g}"]
        return ", ".join([f"{self.method} {self.coefficient}".rstrip(), *noise, *([self.other] if self.other else [])])


def choose(means: pd.DataFrame, about: pd.DataFrame) -> list[Chosen]:
    """One choice for each method of these runs, which are of one world. Unknown nu and seeds stand for nothing."""
    about = about[about["nu"].notna() & about["seed"].notna()]
    if about.empty:
        return []
    settings = about.drop_duplicates("setting")[SETTING].copy()
    settings["score"] = settings["setting"].map(_scores(means))
    settings["family"] = [family(setting) for setting in settings["setting"]]
    return [_of_method(str(method), group) for method, group in settings.groupby("method", sort=False)]


def family(setting: Setting) -> Setting:
    """What a setting has in common with those that differ in nothing but RNA: its configuration and corpora."""
    corpora = frozenset(fact for fact in setting.facts if fact[0] == "corpora")
    return replace(setting.without("rna"), facts=corpora)


def _scores(means: pd.DataFrame) -> pd.Series:
    """Setting -> its score. What no setting has is no part of it."""
    shown = means[(means["model"] == "unlearned") & (means["task"] == MEAN)]

    def of(role: str, query: str, measure: str, against: str) -> pd.Series:
        place = {"role": role, "query": query, "measure": measure, "against": against}
        rows = shown[(shown[list(place)] == pd.Series(place)).all(axis=1)]
        return rows.set_index("setting")["mean"]

    retained, forgotten = of("retain", "perturbed", "acc", ""), of("forget", "default", "acc", "")
    if retained.empty:
        retained, forgotten = (of(text_role(r), "default", "nats", "base") for r in ("retain", "forget"))
        retained, forgotten = -retained, -forgotten
    return retained - forgotten.reindex(retained.index) if len(forgotten) else retained


def _of_method(method: str, group: pd.DataFrame) -> Chosen:
    """The family with both, else with RNA, else any; in it the best with RNA."""
    noisy, plain = group[group["nu"] > 0], group[group["nu"] == 0]
    both = noisy[noisy["family"].isin(set(plain["family"]))]
    candidates = next(part for part in (both, noisy, plain) if len(part))
    best = candidates.sort_values("score", ascending=False, na_position="last", kind="stable").iloc[0]
    counterparts = plain[plain["family"] == best["family"]]
    with_rna = best["nu"] > 0
    return Chosen(
        method,
        str(best["coefficient"]),
        str(best["other"]),
        counterparts["setting"].iloc[0] if len(counterparts) else None,
        best["setting"] if with_rna else None,
        float(best["nu"]) if with_rna else None,
        len(candidates),
    )
