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
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import pandas as pd

from unlearn.analysis.collect import Run
from unlearn.analysis.report.figure import Table
from unlearn.analysis.settings import Setting, method_name
from unlearn.methods.rna import FORGET_TARGET
from unlearn.paper.claims.contrasts import Answers, mean_of, means, weighted
from unlearn.paper.claims.evidence import LAYER, Evidence
from unlearn.paper.claims.texts import FORGOTTEN, RETAINED, STRENGTH, UNIT, WIDEST
from unlearn.paper.theory.verdicts import CONTRARY, NOT_MEASURED, NOT_SEEN, SEEN
from unlearn.records.samples import Sample, half_of
from unlearn.statistics.intervals import crossed, two_way

# In what a rival may differ from the run with RNA.
FREE = (*STRENGTH, "train.steps", "train.lr", LAYER)
FORGOTTEN_PART = "forgotten: "  # the beginning of the names of parts that are forgotten texts


@dataclass(frozen=True)
class Measure:
    """What a text loses, and how far apart two neighbours on an envelope may be in it."""

    name: str
    unit: str
    widest: float

    def lost(self, unlearned: Sample, base: Sample) -> float | None:
        """What a text loses beyond the base model; None if it was not measured."""
        if self.name == "agreement":
            return None if unlearned.agreement is None else 100 * (1 - unlearned.agreement)
        return None if unlearned.value is None or base.value is None else unlearned.value - base.value


NATS = Measure("nats", UNIT, WIDEST)
AGREEMENT = Measure("agreement", "points of agreement with the base model's first choices", 25.0)


@dataclass(frozen=True)
class Point:
    """A run: what it forgot, and its harm to the retained texts."""

    method: str
    setting: Setting
    seed: int
    label: str  # its arguments, and what else tells it apart
    forgotten: float
    harm: Answers
    lost: Answers  # by the forgotten texts, whose mean is `forgotten`

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
        """What its rivals share with it."""
        return self.setting.without(*FREE)

    def mean(self, half: int) -> float:
        """Its harm on one half of the tokens."""
        return mean_of(_half(self.harm, half))


def points(evidence: Evidence, measure: Measure) -> list[Point]:
    """The runs of this world whose samples tell the harm to each text."""
    m, listed = evidence.material, []
    for number, run in enumerate(m.runs):
        about = m.about.loc[m.about["number"] == number].iloc[0]
        if about["world"] != m.world:
            continue
        with m.reading(run):
            forgotten = _lost(run, measure, FORGOTTEN, "default")
            harm = _lost(run, measure, RETAINED, "perturbed")
            if forgotten and all(_half(harm, half) for half in (0, 1)):
                label = "; ".join(part for part in (about["coefficient"], about["other"]) if part)
                method = method_name(run.identity["method"]["name"])
                level = mean_of(forgotten)
                listed.append(Point(method, about["setting"], int(about["seed"]), label, level, harm, forgotten))
    # A run that was asked more later is there twice.
    return list({(point.setting, point.seed): point for point in listed}.values())


def _lost(run: Run, measure: Measure, role: str, query: str) -> Answers:
    """What a run's texts lose, by the forget-token that was inserted; without one, by text."""
    samples: dict[tuple[str, int], dict[str, Sample]] = {}
    for sample in run.samples():
        if (sample.role, sample.query) == (role, query):
            samples.setdefault((sample.task, sample.id), {})[sample.model] = sample
    pairs = ((task, number, of["unlearned"], of["base"]) for (task, number), of in samples.items() if len(of) == 2)
    return means(
        (task, unlearned.inserted or str(number), lost)
        for task, number, unlearned, base in pairs
        if (lost := measure.lost(unlearned, base)) is not None
    )


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


def at(forgotten: float, on: Sequence[Point], widest: float) -> list[tuple[float, Point]] | None:
    """Weights of the neighbours on an envelope that together have forgotten so much.

    Below the first one, the other neighbour is the base model, without harm. None if all have forgotten less, and
    between neighbours that are more than `widest` apart.
    """
    above = bisect_left([point.forgotten for point in on], forgotten)
    if above == len(on):
        return None
    low, high = on[above - 1].forgotten if above else 0.0, on[above].forgotten
    if forgotten == high:
        return [(1.0, on[above])]
    if forgotten < low or high - low > widest:
        return None
    share = (forgotten - low) / (high - low)
    return [(share, on[above]), *([(1 - share, on[above - 1])] if above else [])]


def excess(point: Point, rivals: Sequence[Point], widest: float) -> tuple[Answers, list[str]] | None:
    """A run's harm by token less that of the envelope which the other half chose, and the rivals in question.

    None where rivals have not forgotten as much, or only far from it. The forgotten texts are items, too, with a mean
    of 0: other ones would move the point at which the envelope is read (the delta method, as in `at_equal_forgetting`).
    """
    harm: Answers = {}
    level: Answers = {}
    labels = []
    for half in (0, 1):
        on = envelope(rivals, 1 - half)
        neighbours = at(point.forgotten, on, widest)
        if neighbours is None:
            return None
        weights = [1.0, *(-weight for weight, _ in neighbours)]
        sides = [point.harm, *(rival.harm for _, rival in neighbours)]
        for task, values in _half(weighted(weights, sides), half).items():
            harm.setdefault(task, {}).update(values)
        slope = _slope(point.forgotten, on, half)
        moved = weighted(weights, [point.lost, *(rival.lost for _, rival in neighbours)])
        for task, values in moved.items():
            of_task = level.setdefault(f"{FORGOTTEN_PART}{task}", {})
            of_task |= {text: of_task.get(text, 0.0) - slope * value / 2 for text, value in values.items()}
        labels += [rival.label for _, rival in neighbours]
    count = len(harm) + len(level)  # the excess is the mean over parts
    return {
        task: {item: value * count / len(kind) for item, value in of_task.items()}
        for kind in (harm, level)
        for task, of_task in kind.items()
    }, labels


def _slope(forgotten: float, on: Sequence[Point], half: int) -> float:
    """How much harm one more nat forgotten does on an envelope, by one half of the tokens."""
    above = bisect_left([point.forgotten for point in on], forgotten)
    low, harm = (on[above - 1].forgotten, on[above - 1].mean(half)) if above else (0.0, 0.0)
    return (on[above].mean(half) - harm) / (on[above].forgotten - low)


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
    groups: dict[Setting, dict[int, Point]] = {}
    for point in runs:
        if point.nu > 0:
            groups.setdefault(point.setting, {}).setdefault(point.seed, point)
    of_settings = [_of_setting(list(by_seed.values()), runs, widest) for by_seed in groups.values()]
    return sorted((e for e in of_settings if e.rivals), key=lambda e: (e.first.method, e.first.place or "", e.first.nu))


def _of_setting(runs: Sequence[Point], all_runs: Sequence[Point], widest: float) -> Excess:
    by_seed, labels, counts = {}, [], []
    for run in runs:
        rivals = [p for p in all_runs if (p.nu, p.method, p.seed, p.alike) == (0, run.method, run.seed, run.alike)]
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
    beside = [_less(rna, e, digits) for rna in all_of if _is_placebo_of(e, rna)]
    return {
        "method": e.first.method,
        "noise": e.name,
        "forgotten": f"{e.forgotten:.{digits}f}",
        "rivals a seed": str(e.rivals),
        "most often on the envelope": on[0][0] if on else "–",
        "excess": cell + (f"; {e.without} seeds have no such rival" if e.without and e.by_seed else ""),
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
