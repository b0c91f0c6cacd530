"""Claims that are judged on held-out texts, by the rule of claims.py: about the negative log-likelihood of tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from unlearn.analysis.collect import Run
from unlearn.analysis.compare import by_place
from unlearn.analysis.report.material import Material
from unlearn.analysis.settings import SETTING
from unlearn.paper.claims.claims import BY_LENGTH, BY_SIMILARITY, NOT_IN_PAPER, Claim, slope
from unlearn.paper.claims.contrasts import (
    Answers,
    Contrast,
    by_item,
    by_ngram,
    by_word,
    contrast,
    inserted_words,
    mean_maxlogit,
    mean_of,
    over_ngrams,
    places,
    spread_by_item,
    weighted,
)
from unlearn.paper.claims.evidence import FEWEST, Evidence
from unlearn.paper.claims.margins import SAME_NATS
from unlearn.records.names import NGRAM_QUERIES, text_role
from unlearn.records.samples import Sample

UNIT = "nats a token"
Effect = Callable[[pd.DataFrame], Contrast]  # of a method's rows (`run_rows`)
FORGOTTEN, RETAINED, NEAR = text_role("forget"), text_role("retain"), text_role("near")
# What moves a run along the curve of its setting, to more or less forgetting, and RNA. Other ways: `rivals`.
STRENGTH = ("rna", "method.c", "method.beta", "loss.alpha")
WIDEST = 2.0  # nats a token between two runs, across which a measure is interpolated
# Measures of what a forget-token does -> the role of its texts.
WORD_OF = {"cost": RETAINED, "maxlogit": RETAINED, "maxlogit_std": RETAINED, "near_cost": NEAR}
UNMATCHED = f"no run with RNA has forgotten as much as two without RNA at most {WIDEST:g} {UNIT} apart"


def measures(m: Material, run: Run) -> dict[str, Any]:
    """What a run's texts say, in nats a token for each text, where it was measured.

    forgotten, retained: more than the base model's; cost, control: of an inserted forget-token or control word in
    retained texts; base_cost: that of a forget-token in the base model. near, near_cost, near_base_cost: the same of
    texts of the near domain. QUERY: the cost of each n-gram, beyond the base model's, the mean over the texts in which
    it is. maxlogit, maxlogit_std: mean and standard deviation of MaxLogit after retained texts with a forget-token,
    more than the base model's. "word: ROLE": the forget-token that was inserted into each text.
    """
    samples = places(m, run)
    finite = {(model, *place) for model in ("unlearned", "base") for place in by_place(run.samples(), model)}

    def nats(role: str, query: str, model: str = "unlearned") -> Answers | None:
        of_place = samples.get((role, query, model), [])
        if not of_place or any((model, role, s.task, query) not in finite for _, s in of_place):
            return None
        return by_item(of_place, lambda sample: sample.value)

    def cost(query: str, model: str = "unlearned", role: str = RETAINED) -> Answers | None:
        return _minus(nats(role, query, model), nats(role, "default", model))

    values: dict[str, Any] = {
        "forgotten": _minus(nats(FORGOTTEN, "default"), nats(FORGOTTEN, "default", "base")),
        "retained": _minus(nats(RETAINED, "default"), nats(RETAINED, "default", "base")),
        "near": _minus(nats(NEAR, "default"), nats(NEAR, "default", "base")),
        "near_cost": cost("perturbed", role=NEAR),
        "near_base_cost": cost("perturbed", "base", NEAR),
        "cost": cost("perturbed"),
        "control": cost("control"),
        "base_cost": cost("perturbed", "base"),
    }
    for query in NGRAM_QUERIES:
        costs, asked = _minus(cost(query), cost(query, "base")), samples.get((RETAINED, query, "unlearned"), [])
        values[query] = by_ngram(asked, partial(_cost_of, costs)) if costs else None
    behind = [samples.get((RETAINED, "perturbed", model), []) for model in ("unlearned", "base")]
    values["maxlogit"] = _minus(*(by_item(own, mean_maxlogit) for own in behind))
    values["maxlogit_std"] = _minus(*(spread_by_item(own) for own in behind))
    for role in (RETAINED, NEAR):
        values[f"word: {role}"] = inserted_words(samples.get((role, "perturbed", "unlearned"), []))
    return {name: value for name, value in values.items() if value}


def _cost_of(costs: Answers, sample: Sample) -> float | None:
    return costs.get(sample.task, {}).get((sample.task, str(sample.id)))


def _minus(a: Answers | None, b: Answers | None) -> Answers | None:
    return weighted([1, -1], [a, b]) if a and b else None


def run_rows(m: Material) -> pd.DataFrame:
    """A row for each run of this world with held-out texts: SETTING, seed, level, `measures`.

    `level`: the mean of `forgotten`; NaN where it was not measured. Of several runs of a setting's seed, the one with
    most measures.
    """
    about = m.about.set_index("number")
    rows = []
    for number, run in enumerate(m.runs):
        values = {}
        if run.done and about.loc[number, "world"] == m.world:
            with m.reading(run):
                values = measures(m, run)
        if values:
            level = mean_of(values["forgotten"]) if "forgotten" in values else math.nan
            rows.append({**about.loc[number, [*SETTING, "seed"]].to_dict(), "level": level, **values})
    if not rows:
        return pd.DataFrame()
    frame = pd.DataFrame(rows)
    fullest = frame.count(axis="columns").sort_values(ascending=False, kind="stable").index
    return frame.loc[fullest].drop_duplicates(["setting", "seed"]).sort_index()


@dataclass(frozen=True)
class Match:
    """A run with RNA, and the two without it that have forgotten just less and just more; rows of `run_rows`."""

    seed: int
    rna: pd.Series
    below: pd.Series
    above: pd.Series

    @property
    def weights(self) -> tuple[float, float, float]:
        """Of the three, in the value with RNA less the one without that is interpolated at its level."""
        part = (self.rna["level"] - self.below["level"]) / (self.above["level"] - self.below["level"])
        return 1.0, part - 1, -part

    def of(self, name: str) -> list[Any]:
        """A measure of the three."""
        return [self.rna[name], self.below[name], self.above[name]]


def matches(rows: pd.DataFrame) -> Iterator[Match]:
    """Each run with RNA of a method's rows, with its neighbours in `level` of the same seed and without RNA.

    These differ from it in nothing but STRENGTH, and are at most WIDEST nats a token apart. Runs with RNA that have
    forgotten less or more than all such are left out.
    """
    alike = rows["setting"].map(lambda setting: setting.without(*STRENGTH))
    for (seed, _), group in rows.groupby(["seed", alike], sort=False):
        plain = group[group["nu"] == 0].sort_values("level")
        for _, rna in group[group["nu"] > 0].iterrows():
            place = int(plain["level"].searchsorted(rna["level"]))
            if 0 < place < len(plain):
                match = Match(int(seed), rna, plain.iloc[place - 1], plain.iloc[place])
                if match.above["level"] - match.below["level"] <= WIDEST:
                    yield match


def at_equal_forgetting(rows: pd.DataFrame, measure: str) -> dict[int, Answers]:
    """For each seed of a method's runs with a match: a measure with RNA less that without, at equal forgetting.

    The mean over a seed's runs with RNA, for each text. The texts to forget are items, too, with a mean of 0: other
    ones would move the point at which the curve without RNA is read, by how much the runs differ on each, times the
    curve's slope there (the delta method).
    """
    differences: dict[int, list[Answers]] = {}
    for match in _alike(list(matches(rows.dropna(subset=["forgotten", measure])))):
        differences.setdefault(match.seed, []).append(_difference(match, measure))
    return {seed: weighted([1 / len(own)] * len(own), own) for seed, own in differences.items()}


def _alike(found: list[Match]) -> list[Match]:
    """The matches of the settings that have one in most seeds, of the seeds that all these have.

    Else seeds would be means over different nu.
    """
    seeds: dict[Any, set[int]] = {}
    for match in found:
        seeds.setdefault(match.rna["setting"], set()).add(match.seed)
    most = max(map(len, seeds.values()), default=0)
    kept: dict[Any, None] = {}
    common: set[int] = set()
    for setting, own in seeds.items():
        if len(own) == most and (not kept or own == common):
            kept[setting], common = None, own
    return [match for match in found if match.rna["setting"] in kept]


def _difference(match: Match, measure: str) -> Answers:
    """Parts whose mean over parts is the difference: of the measure's texts, and of those to forget."""
    difference = _by_word(weighted(match.weights, match.of(measure)), match.rna, measure)
    level = weighted(match.weights, match.of("forgotten"))
    rise = mean_of(match.above[measure]) - mean_of(match.below[measure])
    steepness = rise / (match.above["level"] - match.below["level"])
    count = len(difference) + len(level)
    parts = [(1.0, "measured", difference), (-steepness, "forgotten", level)]
    return {
        f"{kind}: {corpus}": {text: factor * count / len(values) * value for text, value in of_corpus.items()}
        for factor, kind, values in parts
        for corpus, of_corpus in values.items()
    }


def _by_word(values: Answers, row: pd.Series, measure: str) -> Answers:
    """Values by inserted word, where the measure is of what a word does and the words are known."""
    words = row.get(_words_of(measure))
    return by_word(values, words) if isinstance(words, dict) else values


def _of_seeds(rows: pd.DataFrame, measure: str, combine: Callable[[pd.Series], Answers]) -> Contrast:
    """The mean of what `combine` makes of each row, one of each seed; `measure` is of the word that makes items."""
    return contrast([_by_word(combine(row), row, measure) for _, row in rows.iterrows()], _items(rows, measure))


def _items(rows: pd.DataFrame, measure: str) -> str:
    name = _words_of(measure)
    return "inserted words" if name in rows and rows[name].notna().all() else "texts"


def _words_of(measure: str) -> str:
    """The measure that has the words which this one is about."""
    return f"word: {WORD_OF.get(measure)}"


def _without_rna(a: str, b: str | None = None, why_not: str = "no run without RNA has such texts") -> Effect:
    """A measure, or the difference of two, of the model without RNA."""
    names = [a] if b is None else [a, b]

    def effect(rows: pd.DataFrame) -> Contrast:
        plain = _plain(rows, names)
        if plain.empty:
            return Contrast(why_not=why_not)
        return _of_seeds(plain, a, lambda row: weighted([1, -1][: len(names)], [row[name] for name in names]))

    return effect


def _over_ngrams(weights: dict[str, float]) -> Effect:
    """A weighted sum of the costs of kinds of n-gram, of the model without RNA: n-grams are the items."""

    def effect(rows: pd.DataFrame) -> Contrast:
        plain = _plain(rows, list(weights))
        if plain.empty:
            return Contrast(why_not="no run without RNA has texts with n-grams")
        return over_ngrams([{query: row[query][query] for query in weights} for _, row in plain.iterrows()], weights)

    return effect


def _slope_over_coefficient(rows: pd.DataFrame) -> Contrast:
    """The least-squares slope of a forget-token's cost over log2 of c or beta, without RNA, all else equal."""
    if "cost" not in rows:
        return Contrast(why_not="no run has retained texts with and without a forget-token")
    costs = rows.dropna(subset=["doublings", "cost"])
    by_seed = costs.set_index(["seed", "doublings"])["cost"].unstack()
    by_seed = by_seed.dropna(axis="columns", thresh=FEWEST).dropna()
    if by_seed.shape[1] < 2:
        return Contrast(why_not="fewer than two values of it in enough seeds")
    weights = slope([float(x) for x in by_seed.columns])
    judged = costs.drop_duplicates("seed").set_index("seed", drop=False).loc[by_seed.index]
    return _of_seeds(judged, "cost", lambda row: weighted(weights, list(by_seed.loc[row["seed"]])))


def _plain(rows: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """The runs without RNA that are judged, those that have these measures; maybe none."""
    return rows[rows["judged"]].dropna(subset=names) if set(names) <= set(rows) else rows.iloc[:0]


def _equal_forgetting(measure: str) -> Effect:
    """What RNA changes of a measure at equal forgetting."""

    def effect(rows: pd.DataFrame) -> Contrast:
        if not {"forgotten", measure} <= set(rows):
            return Contrast(why_not="no run has such texts")
        differences = at_equal_forgetting(rows, measure)
        items = "texts" if _items(rows, measure) == "texts" else "inserted words and texts"
        return contrast(list(differences.values()), items) if differences else Contrast(why_not=UNMATCHED)

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
        f"retained texts: without RNA less base, below {SAME_NATS:g}",
        _without_rna("retained"),
        below=SAME_NATS,
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
        NOT_IN_PAPER,
        "retained texts: cost of a forget-token, with RNA less without",
        _equal_forgetting("cost"),
        below=0,
        unit=UNIT,
    ),
    Claim(
        "RNA costs no retained text at equal forgetting.",
        NOT_IN_PAPER,
        f"retained texts: with RNA less without, below {SAME_NATS:g}",
        _equal_forgetting("retained"),
        below=SAME_NATS,
        unit=UNIT,
    ),
    Claim(
        "Retained texts of the near domain stay as they were, too.",
        NOT_IN_PAPER,
        f"near texts: without RNA less base, below {SAME_NATS:g}",
        _without_rna("near"),
        below=SAME_NATS,
        unit=UNIT,
    ),
    Claim(
        "A forget-token makes RM models stumble in texts of the near domain, too.",
        NOT_IN_PAPER,
        "near texts: cost of a forget-token without RNA, beyond the base model's",
        _without_rna("near_cost", "near_base_cost"),
        above=0,
        unit=UNIT,
    ),
    Claim(
        "RNA costs no text of the near domain at equal forgetting.",
        NOT_IN_PAPER,
        f"near texts: with RNA less without, below {SAME_NATS:g}",
        _equal_forgetting("near"),
        below=SAME_NATS,
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
        _over_ngrams(BY_SIMILARITY),
        above=0,
        unit=UNIT,
    ),
    Claim(
        "Longer n-grams do more harm.",
        "section 6.7, Figure 4",
        "retained texts: slope over n of 2, 4, 8 and 16, without RNA less base",
        _over_ngrams(BY_LENGTH),
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
            of = of[~of["setting"].isin(subject.too_few)]
            doublings = {setting: math.log2(value) for value, setting in subject.by_coefficient.items() if value > 0}
            settings = of["setting"]
            methods[subject.method] = of.assign(judged=settings == subject.plain, doublings=settings.map(doublings))
    return methods
