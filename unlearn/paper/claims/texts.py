"""Claims that are judged on held-out texts, by the rule of claims.py: about the negative log-likelihood of tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean

import numpy as np
import pandas as pd

from unlearn.analysis.report.material import Material
from unlearn.analysis.settings import SETTING
from unlearn.paper.claims.claims import Claim, slope
from unlearn.paper.claims.contrasts import Contrast, mean_over_seeds
from unlearn.paper.claims.evidence import FEWEST, Evidence
from unlearn.records.names import NGRAM_QUERIES, NGRAM_SIZES, text_role
from unlearn.records.scores import Score, role_means

UNIT = "nats a token"
SAME = 0.05  # nats a token: what counts as "stays the same"
Effect = Callable[[pd.DataFrame], Contrast]  # of a method's rows (`run_rows`)
FORGOTTEN, RETAINED = text_role("forget"), text_role("retain")
# What moves a run along the curve of its setting, to more or less forgetting, and RNA.
STRENGTH = ("rna", "method.c", "method.beta", "loss.alpha", "train.steps", "train.lr")
WIDEST = 2.0  # nats a token between two runs, across which a measure is interpolated


def measures(scores: Sequence[Score]) -> dict[str, float]:
    """What a run's texts say, in nats a token, where it was measured.

    forgotten, retained: more than the base model's; cost, control: of an inserted forget-token or control word in
    retained texts; base_cost: that of a forget-token in the base model; QUERY: the cost of an n-gram, beyond the base
    model's. maxlogit, maxlogit_std: mean and standard deviation of MaxLogit after retained texts with a forget-token,
    more than the base model's.
    """
    change = role_means(scores, "nats", against="base")
    cost = role_means(scores, "nats", against="default")
    base = role_means(scores, "nats", model="base", against="default")
    values = {
        "forgotten": change.get((FORGOTTEN, "default")),
        "retained": change.get((RETAINED, "default")),
        "cost": cost.get((RETAINED, "perturbed")),
        "control": cost.get((RETAINED, "control")),
        "base_cost": base.get((RETAINED, "perturbed")),
    }
    for query in NGRAM_QUERIES:
        values[query] = _minus(cost.get((RETAINED, query)), base.get((RETAINED, query)))
    for name, measure in (("maxlogit", "maxlogit_mean"), ("maxlogit_std", "maxlogit_std")):
        unlearned, of_base = (role_means(scores, measure, model=model) for model in ("unlearned", "base"))
        values[name] = _minus(unlearned.get((RETAINED, "perturbed")), of_base.get((RETAINED, "perturbed")))
    return {name: value for name, value in values.items() if value is not None}


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def run_rows(m: Material) -> pd.DataFrame:
    """A row for each run of this world with held-out texts: SETTING, seed, `measures`.

    Of several runs of a setting's seed, the one with most measures.
    """
    about = m.about.set_index("number")
    rows = []
    for number, run in enumerate(m.runs):
        values = measures(run.scores) if about.loc[number, "world"] == m.world else {}
        if values:
            rows.append({**about.loc[number, [*SETTING, "seed"]].to_dict(), **values})
    if not rows:
        return pd.DataFrame()
    frame = pd.DataFrame(rows)
    fullest = frame.count(axis="columns").sort_values(ascending=False, kind="stable").index
    return frame.loc[fullest].drop_duplicates(["setting", "seed"]).sort_index()


def at_equal_forgetting(rows: pd.DataFrame, measure: str) -> dict[int, float]:
    """For each seed of a method's runs: a measure with RNA less that without, at equal forgetting.

    Without RNA, the measure at other amounts of forgetting is interpolated between neighbouring runs that are at most
    WIDEST nats a token apart, and differ in nothing but STRENGTH. Runs with RNA that have forgotten less or more than
    all such are left out; the others are averaged. Seeds without any are left out.
    """
    differences: dict[int, list[float]] = {}
    alike = rows["setting"].map(lambda setting: setting.without(*STRENGTH))
    for (seed, _), group in rows.groupby(["seed", alike], sort=False):
        plain = group[group["nu"] == 0].sort_values("forgotten")
        x, y = plain["forgotten"].to_numpy(), plain[measure].to_numpy()
        for forgotten, value in group.loc[group["nu"] > 0, ["forgotten", measure]].itertuples(index=False):
            above = int(x.searchsorted(forgotten))
            if 0 < above < len(x) and x[above] - x[above - 1] <= WIDEST:
                differences.setdefault(int(seed), []).append(value - float(np.interp(forgotten, x, y)))
    return {seed: fmean(values) for seed, values in differences.items()}


def _without_rna(a: str, b: str | None = None, why_not: str = "no run without RNA has such texts") -> Effect:
    """A measure, or the difference of two, of the model without RNA."""

    def effect(rows: pd.DataFrame) -> Contrast:
        plain = _plain(rows, [a] if b is None else [a, b])
        if plain.empty:
            return Contrast(why_not=why_not)
        return mean_over_seeds(list(plain[a] if b is None else plain[a] - plain[b]))

    return effect


def _slope_over_length(rows: pd.DataFrame) -> Contrast:
    """The least-squares slope of an n-gram's cost over log2 n, without RNA."""
    queries = [f"ngram-{n}" for n in NGRAM_SIZES]
    plain = _plain(rows, queries)
    if plain.empty:
        return Contrast(why_not="no run without RNA has texts with n-grams")
    return mean_over_seeds(list(plain[queries] @ slope([math.log2(n) for n in NGRAM_SIZES])))


def _slope_over_coefficient(rows: pd.DataFrame) -> Contrast:
    """The least-squares slope of a forget-token's cost over log2 of c or beta, without RNA, all else equal."""
    costs = rows.dropna(subset=["doublings"]) if "cost" in rows else rows.iloc[:0]
    by_seed = costs.pivot_table(index="seed", columns="doublings", values="cost")
    by_seed = by_seed.dropna(axis="columns", thresh=FEWEST).dropna()
    if by_seed.shape[1] < 2:
        return Contrast(why_not="fewer than two values of it in enough seeds")
    return mean_over_seeds(list(by_seed @ slope([float(x) for x in by_seed.columns])))


def _plain(rows: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """The runs without RNA that are judged, those that have these measures; maybe none."""
    return rows[rows["judged"]].dropna(subset=names) if set(names) <= set(rows) else rows.iloc[:0]


def _equal_forgetting(measure: str) -> Effect:
    """What RNA changes of a measure at equal forgetting."""

    def effect(rows: pd.DataFrame) -> Contrast:
        if not {"forgotten", measure} <= set(rows):
            return Contrast(why_not="no run has such texts")
        differences = at_equal_forgetting(rows.dropna(subset=["forgotten", measure]), measure)
        if not differences:
            return Contrast(
                why_not=f"no run with RNA has forgotten as much as two without RNA at most {WIDEST:g} {UNIT} apart"
            )
        return mean_over_seeds(list(differences.values()))

    return effect


CLAIMS = (
    Claim(
        "Unlearning reaches texts that were not trained on.",
        "section 3",
        "forgotten texts: without RNA less base",
        _without_rna("forgotten"),
        above=0,
        unit=UNIT,
    ),
    Claim(
        "Retained texts stay as they were.",
        "section 3",
        f"retained texts: without RNA less base, below {SAME:g}",
        _without_rna("retained"),
        below=SAME,
        unit=UNIT,
    ),
    Claim(
        "A forget-token in a harmless text makes RM models stumble.",
        "section 6.4",
        "retained texts: cost of a forget-token without RNA, beyond the base model's",
        _without_rna("cost", "base_cost"),
        above=0,
        unit=UNIT,
    ),
    Claim(
        "It is the forget-token that does it: other words do less harm.",
        "a control of this project's",
        "retained texts: cost of a forget-token less that of a control word, without RNA",
        _without_rna("cost", "control"),
        above=0,
        unit=UNIT,
    ),
    Claim(
        "RNA makes RM models stumble less at equal forgetting.",
        "not asked in the paper",
        "retained texts: cost of a forget-token, with RNA less without",
        _equal_forgetting("cost"),
        below=0,
        unit=UNIT,
    ),
    Claim(
        "RNA costs no retained text at equal forgetting.",
        "not asked in the paper",
        f"retained texts: with RNA less without, below {SAME:g}",
        _equal_forgetting("retained"),
        below=SAME,
        unit=UNIT,
    ),
    Claim(
        "The larger c or beta, the less robust.",
        "section 6.5, Figure 2",
        "retained texts: slope of a forget-token's cost, without RNA",
        _slope_over_coefficient,
        above=0,
        unit=f"{UNIT} for each doubling",
    ),
    Claim(
        "RM models are less sure than the base model under perturbation.",
        "section 6.3, Figure 1",
        "after retained texts with a forget-token: mean MaxLogit without RNA less base",
        _without_rna("maxlogit", why_not="no run without RNA has MaxLogit of texts (eval.maxlogit)"),
        below=0,
        unit="logits",
    ),
    Claim(
        "Their MaxLogit is more concentrated than the base model's.",
        "section 6.3, Figure 1",
        "after retained texts with a forget-token: standard deviation of MaxLogit without RNA less base",
        _without_rna("maxlogit_std", why_not="no run without RNA has MaxLogit of texts (eval.maxlogit)"),
        below=0,
        unit="logits",
    ),
    Claim(
        "N-grams more similar to their documents do more harm.",
        "section 6.7, Figure 4",
        "retained texts: cost of similarity-most less that of similarity-least, without RNA less base",
        _without_rna("similarity-most", "similarity-least"),
        above=0,
        unit=UNIT,
    ),
    Claim(
        "Longer n-grams do more harm.",
        "section 6.7, Figure 4",
        "retained texts: slope over n of 2, 4, 8 and 16, without RNA less base",
        _slope_over_length,
        above=0,
        unit=f"{UNIT} for each doubling",
    ),
)


def by_method(evidence: Evidence) -> dict[str, pd.DataFrame]:
    """method -> its rows, where runs have held-out texts; `judged`: whether of the model without RNA that is judged.

    `doublings`: log2 of c or beta of the models that differ from that one in nothing else; NaN for others. A nu
    of too few seeds is left out, lest its seeds be judged by other nu than the others.
    """
    rows, methods = run_rows(evidence.material), {}
    for subject in evidence.subjects:
        of = rows[rows["method"] == subject.method] if len(rows) else rows
        if len(of):
            of = of[~of["setting"].isin(set(subject.by_nu.values()) - set(subject.compared.values()))]
            doublings = {setting: math.log2(value) for value, setting in subject.by_coefficient.items() if value > 0}
            settings = of["setting"]
            methods[subject.method] = of.assign(judged=settings == subject.plain, doublings=settings.map(doublings))
    return methods
