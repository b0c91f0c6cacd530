"""RNA against its rivals, on held-out texts: what as many runs without it reach, and what noise elsewhere reaches.

A run's *harm* is what a retained text with a forget-token loses beyond what the base model loses with the same token:
the token's cost, and what the text has lost anyway. A rival is a run without RNA, of the same method, seed and corpora,
with any c or beta, alpha, learning rate, number of steps, or layer. The *envelope* is the lowest harm at which rivals
forget as much, as a function of forgetting: a rival counts unless one that has forgotten as much does less harm, and
between neighbours the harm is interpolated. A run's *excess* is its harm less the envelope at its own forgetting.

The best of many rivals looks better on the texts that choose it than it is. So one half of the forget-tokens, with the
texts that they stand in, chooses the rivals, the excess is measured on the other half, and then the other way round.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import attrgetter, methodcaller
from statistics import fmean
from typing import Any

import pandas as pd

from unlearn.analysis.report.answers import Answers, mean_of, weighted
from unlearn.analysis.report.figure import Table
from unlearn.analysis.settings import Setting, method_name
from unlearn.methods.rna import FORGET_TARGET
from unlearn.paper.claims.equal_forgetting import (
    FORGOTTEN_PART,
    STRENGTH,
    UNIT,
    WIDEST,
    Match,
    match_of,
    with_forgotten,
)
from unlearn.paper.claims.evidence import LAYER, Evidence
from unlearn.paper.theory.verdicts import CONTRARY, NOT_MEASURED, NOT_SEEN, SEEN
from unlearn.records.samples import half_of
from unlearn.statistics.intervals import crossed, two_way

# In what a rival may differ from the run with RNA.
FREE = (*STRENGTH, "train.steps", "train.lr", LAYER)
BASE = "the base model"


@dataclass(frozen=True)
class Measure:
    """What a text loses, in two measures of `run_rows`, and how far apart two neighbours on an envelope may be."""

    name: str
    unit: str
    forgotten: str
    harm: str
    widest: float


NATS = Measure("nats", UNIT, "forgotten", "harm", WIDEST)
AGREEMENT = Measure(
    "agreement", "points of agreement with the base model's first choices", "forgotten_points", "harm_points", 25.0
)


@dataclass(frozen=True)
class Point:
    """A run: what it forgot, and its harm to the retained texts."""

    setting: Setting
    seed: int
    label: str  # its arguments, and what else tells it apart
    harm: Answers  # by token
    lost: Answers  # by forgotten text

    @cached_property
    def forgotten(self) -> float:
        """The mean over the forgotten texts."""
        return mean_of(self.lost)

    @property
    def method(self) -> str:
        """Its name, of a placebo the same as of RNA."""
        return method_name(self.setting.get("method.name"))

    @property
    def nu(self) -> float:
        """The scale of its noise; 0 without."""
        return float(self.setting.get("rna.nu") or 0)

    @property
    def place(self) -> str | None:
        """Where the noise of a placebo is; None without noise, and for RNA."""
        return self.setting.get("rna.where")

    @property
    def alike(self) -> Setting:
        """What its rivals share with it, the method among it."""
        return self.setting.without(*FREE)

    def mean(self, half: int) -> float:
        """Its harm on one half of the tokens."""
        return mean_of(_half(self.harm, half))


def points(evidence: Evidence, measure: Measure) -> list[Point]:
    """The runs of this world whose texts tell the harm on both halves."""
    rows, names = evidence.text_rows, [measure.forgotten, measure.harm]
    if not set(names) <= set(rows):
        return []
    listed = []
    for _, row in rows.dropna(subset=names).iterrows():
        label = "; ".join(part for part in (row["coefficient"], row["other"]) if part)
        listed.append(Point(row["setting"], int(row["seed"]), label, row[measure.harm], row[measure.forgotten]))
    return [point for point in listed if all(_half(point.harm, half) for half in (0, 1))]


def _half(values: Answers, half: int) -> Answers:
    """One half of the tokens."""
    parts = {task: {item: v for item, v in of.items() if half_of(item) == half} for task, of in values.items()}
    return {task: of for task, of in parts.items() if of}


def envelope(rivals: Iterable[Point], half: int) -> list[Point]:
    """Rivals that no other dominates on one half of the tokens, by forgetting: so harm rises with it."""
    kept: list[Point] = []
    for rival in sorted(rivals, key=lambda r: (-r.forgotten, r.mean(half))):
        if not kept or rival.mean(half) < kept[-1].mean(half):
            kept.append(rival)
    return kept[::-1]


def beside_envelope(point: Point, rivals: Iterable[Point], half: int, widest: float) -> Match[Point] | None:
    """A run and its neighbours on an envelope, which begins at the base model; None as of `match_of`."""
    harm, lost = (weighted([0.0], [values]) for values in (point.harm, point.lost))
    base = replace(point, label=BASE, harm=harm, lost=lost)
    return match_of(point, [base, *envelope(rivals, half)], attrgetter("forgotten"), widest)


def excess(point: Point, rivals: Sequence[Point], widest: float) -> tuple[Answers, list[str]] | None:
    """A run's harm by token less that of the envelope which the other half chose, and the rivals in question.

    None where rivals have not forgotten as much, or only far from it. The forgotten texts are items, too.
    """
    harm: Answers = {}
    moved: list[Answers] = []
    labels = []
    for half in (0, 1):
        match = beside_envelope(point, rivals, 1 - half, widest)
        if match is None:
            return None
        for task, values in _half(match.less_curve(attrgetter("harm")), half).items():
            harm.setdefault(task, {}).update(values)
        moved.append(match.moved(methodcaller("mean", half), attrgetter("lost")))
        labels += [p.label for p, weight in ((match.above, match.part), (match.below, 1 - match.part)) if weight]
    return with_forgotten(harm, weighted([0.5, 0.5], moved)), [label for label in labels if label != BASE]


@dataclass(frozen=True)
class Excess:
    """The excess of the runs of one setting with noise: seed -> by token; `labels` of the rivals, `without` a rival."""

    first: Point
    forgotten: float
    by_seed: dict[int, Answers]
    labels: list[str]
    rivals: int  # of a seed, on average
    without: int

    @property
    def name(self) -> str:
        """The noise."""
        of = "RNA" if self.first.place is None else f"noise on the {self.first.place.replace('_', ' ')}"
        per = ", one vector a text" if self.first.setting.get("rna.per") == "text" else ""
        return f"{of}, nu = {self.first.nu:g}{per}"


def excesses(runs: Sequence[Point], widest: float) -> list[Excess]:
    """Of each setting with noise that has rivals, RNA first."""
    groups: dict[Setting, list[Point]] = {}
    for point in runs:
        if point.nu > 0:
            groups.setdefault(point.setting, []).append(point)
    of_settings = [_of_setting(of, runs, widest) for of in groups.values()]
    return sorted((e for e in of_settings if e.rivals), key=lambda e: (e.first.method, e.first.place or "", e.first.nu))


def _of_setting(runs: Sequence[Point], all_runs: Sequence[Point], widest: float) -> Excess:
    by_seed, labels, counts = {}, [], []
    for run in runs:
        rivals = [p for p in all_runs if (p.nu, p.seed, p.alike) == (0, run.seed, run.alike)]
        counts.append(len(rivals))
        of_run = excess(run, rivals, widest) if rivals else None
        if of_run is not None:
            by_seed[run.seed], chosen = of_run
            labels += chosen
    lost = len(runs) - len(by_seed)
    return Excess(runs[0], fmean(r.forgotten for r in runs), by_seed, labels, round(fmean(counts)), lost)


def tables(evidence: Evidence) -> list[Table]:
    """The excess of RNA at each nu and of each placebo, and RNA less each placebo; none without texts or RNA."""
    by_measure = [(measure, excesses(points(evidence, measure), measure.widest)) for measure in (NATS, AGREEMENT)]
    return [_table(measure, settings) for measure, settings in by_measure if settings]


def _table(measure: Measure, settings: Sequence[Excess]) -> Table:
    note = (
        "Harm: what a retained text with a forget-token loses beyond the base model. Excess: harm less the lowest at "
        "which runs without RNA have forgotten as much, of the same method and seed, of any c or beta, alpha, learning "
        "rate, number of steps, or layer. One half of the forget-tokens chooses these rivals, the other half measures, "
        f"and the other way round; between rivals more than {measure.widest:g} apart nothing is interpolated. 95 % "
        "interval over seeds and forget-tokens. Seen: less harm than rivals (than the placebo) do. A placebo is set "
        "beside RNA of its nu; noise on the forget target, which alpha does not weigh, also of its nu divided by alpha."
    )
    title = f"RNA against its rivals, in {measure.unit}"
    return Table(f"rivals_{measure.name}", title, note, pd.DataFrame([_row(e, settings, measure) for e in settings]))


def _row(e: Excess, all_of: Sequence[Excess], measure: Measure) -> dict[str, Any]:
    on = Counter(e.labels).most_common(1)
    digits = 2 if measure is NATS else 1
    cell = _cell(e.by_seed, f"rivals have forgotten less, or none is within {measure.widest:g}", digits)
    seeds = e.without + len(e.by_seed)
    lacking = f"; without such a rival: {e.without} of {seeds} seeds" if e.without and e.by_seed else ""
    beside = [_less(rna, e, digits) for rna in all_of if _is_placebo_of(e, rna)]
    return {
        "method": e.first.method,
        "noise": e.name,
        "forgotten": f"{e.forgotten:.{digits}f}",
        "rivals a seed": str(e.rivals),
        "most often on the envelope": on[0][0] if on else "–",
        "excess": cell + lacking,
        "RNA less this placebo": "; ".join(beside) or "–",
    }


def _is_placebo_of(e: Excess, rna: Excess) -> bool:
    placebo, other = e.first, rna.first
    if placebo.place is None or other.place is not None:
        return False
    same = placebo.setting.without("rna") == other.setting.without("rna")
    alpha = float(other.setting.get("loss.alpha") or 1)
    return same and placebo.nu in (other.nu, *([other.nu * alpha] if placebo.place == FORGET_TARGET else []))


def _less(rna: Excess, placebo: Excess, digits: int) -> str:
    shared = sorted(rna.by_seed.keys() & placebo.by_seed.keys())
    difference = {s: weighted([1, -1], [rna.by_seed[s], placebo.by_seed[s]]) for s in shared}
    return _cell(difference, "no seed has both", digits)


def _cell(by_seed: dict[int, Answers], why_not: str, digits: int) -> str:
    """Verdict, mean and interval over seeds and tokens."""
    parts = crossed(list(by_seed.values()))
    if not parts:
        return f"{NOT_MEASURED}: {why_not}"
    mean, low, high = (round(value, digits) for value in two_way(parts))
    tokens = sum(len(of_task) for task, of_task in by_seed[min(by_seed)].items() if not task.startswith(FORGOTTEN_PART))
    if math.isnan(low):
        return f"{NOT_MEASURED}: {mean:+.{digits}f}, a single seed ({tokens} tokens)"
    verdict = SEEN if high < 0 else CONTRARY if low > 0 else NOT_SEEN
    interval = f"{low:+.{digits}f} .. {high:+.{digits}f}; {len(by_seed)} seeds x {tokens} tokens"
    return f"**{verdict}** {mean:+.{digits}f} ({interval})"
