"""Claims that are judged on held-out texts, by the rule of claims.py: about the negative log-likelihood of tokens."""

from __future__ import annotations

import math
from collections.abc import Callable

import pandas as pd

from unlearn.analysis.report.answers import Answers, weighted
from unlearn.paper.claims.claims import BY_LENGTH, BY_SIMILARITY, NOT_IN_PAPER, Claim, slope
from unlearn.paper.claims.contrasts import Contrast, contrast, over_ngrams
from unlearn.paper.claims.equal_forgetting import UNIT, UNMATCHED, at_equal_forgetting
from unlearn.paper.claims.evidence import FEWEST, Evidence
from unlearn.paper.claims.margins import SAME_NATS
from unlearn.paper.claims.text_measures import by_forget_token, items_of

Effect = Callable[[pd.DataFrame], Contrast]  # of a method's rows (`run_rows`)


def _of_seeds(rows: pd.DataFrame, measure: str, combine: Callable[[pd.Series], Answers]) -> Contrast:
    """The mean of what `combine` makes of each row, one of each seed; `measure` is of the word that makes items."""
    return contrast(
        [by_forget_token(combine(row), row, measure) for _, row in rows.iterrows()], items_of(rows, measure)
    )


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
        items = "texts" if items_of(rows, measure) == "texts" else "inserted words and texts"
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
    rows, methods = evidence.text_rows, {}
    for subject in evidence.subjects:
        of = rows[rows["method"] == subject.method] if len(rows) else rows
        if len(of):
            of = of[~of["setting"].isin(subject.too_few)]
            doublings = {setting: math.log2(value) for value, setting in subject.by_coefficient.items() if value > 0}
            settings = of["setting"]
            methods[subject.method] = of.assign(judged=settings == subject.plain, doublings=settings.map(doublings))
    return methods
