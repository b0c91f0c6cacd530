"""Whether RNA makes forgetting easier to undo, by the rule of claims.py, attack by attack."""

from __future__ import annotations

from functools import partial
from operator import itemgetter
from statistics import fmean

import numpy as np
import pandas as pd

from unlearn.analysis.report.attacks import DISJOINT, STRONGEST, attack_rows, comparable, strongest
from unlearn.paper.claims.claims import NOT_IN_PAPER, Claim
from unlearn.paper.claims.contrasts import Contrast, over_seeds_alone
from unlearn.paper.claims.equal_forgetting import UNMATCHED, matches
from unlearn.paper.claims.evidence import FEWEST, Evidence
from unlearn.paper.claims.margins import SAME_POINTS, SAME_RECOVERED


def by_method(evidence: Evidence) -> dict[str, pd.DataFrame]:
    """method -> the rows (`attack_rows`) of the model without RNA that is judged, and of those with it.

    In points these are the runs with their seed's best nu: if a nu left nothing forgotten, nothing can come back.
    On texts all runs of the method are there, to be compared at equal forgetting, but those with a nu of too few seeds.
    """
    rows, methods = attack_rows(evidence.material), {}
    for subject in evidence.subjects:
        of = rows[rows["method"] == subject.method].dropna(subset="recovered") if len(rows) else rows
        if len(of):
            judged = of["setting"].isin({subject.plain, *subject.by_nu.values()})
            best = (of["nu"] == of["seed"].map(subject.best_nu)) | (of["nu"] == 0)
            few = of["setting"].isin(subject.too_few)
            methods[subject.method] = of[(of["unit"] == "nats") & ~few | (of["unit"] == "points") & judged & best]
    return methods


def claims(methods: dict[str, pd.DataFrame]) -> list[Claim]:
    """A claim for each attack that was made, and for the strongest of each run."""
    names = sorted({name for rows in methods.values() for name in rows["attack"]})
    units = {unit for rows in methods.values() for unit in rows["unit"]}
    listed = []
    for unit, same in (("points", SAME_POINTS), ("nats", SAME_RECOVERED)):
        for name in [*names, STRONGEST] if unit in units else ():
            listed.append(
                Claim(
                    f"RNA does not make forgetting easier to undo: {name}.",
                    NOT_IN_PAPER,
                    f"what it brings back: with RNA less without, to be below {same:g}",
                    partial(_more, attack=name, unit=unit),
                    below=same,
                    unit="points" if unit == "points" else "nats a token",
                )
            )
    return listed


def _more(rows: pd.DataFrame, attack: str, unit: str) -> Contrast:
    """How much more comes back with RNA: with the best nu, and on texts at equal forgetting."""
    chosen = rows[(rows["unit"] == unit) & ((rows["attack"] == attack) | (attack == STRONGEST))]
    if chosen.empty:
        return Contrast(why_not="no such attack was made")
    chosen = comparable(chosen)
    if chosen.empty:
        return Contrast(why_not=DISJOINT)
    strongest_rows = strongest(chosen)
    if unit == "nats":
        differences: dict[int, list[float]] = {}
        for match in matches(strongest_rows.assign(level=-strongest_rows["without"])):
            difference = float(np.dot(match.weights, match.of(itemgetter("recovered"))))
            differences.setdefault(int(match.run["seed"]), []).append(difference)
        values, why = [fmean(own) for own in differences.values()], UNMATCHED
    else:
        means = strongest_rows.groupby(["seed", strongest_rows["nu"] > 0])["recovered"].mean().unstack().dropna()
        values = list(means[True] - means[False]) if {True, False} <= set(means) else []
        why = "no seed with RNA, whose best nu is known, and without"
    return over_seeds_alone(values) if len(values) >= FEWEST else Contrast(why_not=why)
