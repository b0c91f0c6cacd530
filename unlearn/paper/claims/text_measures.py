"""What is measured of each run on held-out texts."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from unlearn.analysis.collect import Run
from unlearn.analysis.report.answers import (
    Answers,
    Places,
    by_item,
    by_ngram,
    by_word,
    flat,
    inserted_words,
    mean_maxlogit,
    mean_of,
    means,
    places,
    spread_by_item,
)
from unlearn.analysis.report.material import Material
from unlearn.analysis.report.text_costs import beyond_base, minus, word_cost, word_cost_beyond_base
from unlearn.analysis.settings import SETTING
from unlearn.records.names import NGRAM_QUERIES, text_role

FORGOTTEN, RETAINED, NEAR = text_role("forget"), text_role("retain"), text_role("near")
# Measures of what a forget-token does -> the role of its texts.
WORD_OF = {"cost": RETAINED, "maxlogit": RETAINED, "maxlogit_std": RETAINED, "near_cost": NEAR}


def measures(m: Material, run: Run) -> dict[str, Any]:
    """What a run's texts say, in nats a token for each text, where it was measured.

    forgotten, retained: more than the base model's; cost, control: of an inserted forget-token or control word in
    retained texts; base_cost: that of a forget-token in the base model. near, near_cost, near_base_cost: the same of
    texts of the near domain. harm: what retained texts with a forget-token cost more than in the base model, by token.
    QUERY: the cost of each n-gram, beyond the base model's, the mean over the texts in which it is. maxlogit,
    maxlogit_std: mean and standard deviation of MaxLogit after retained texts with a forget-token, more than the base
    model's. forgotten_points, harm_points: as forgotten and harm, of 100 points those in which the first choices are
    not the base model's. "word: ROLE": the forget-token that was inserted into each text.
    """
    of = places(m, run)
    values: dict[str, Any] = {
        "forgotten": beyond_base(of, FORGOTTEN, "default"),
        "retained": beyond_base(of, RETAINED, "default"),
        "near": beyond_base(of, NEAR, "default"),
        "near_cost": word_cost(of, NEAR, "perturbed"),
        "near_base_cost": word_cost(of, NEAR, "perturbed", "base"),
        "cost": word_cost(of, RETAINED, "perturbed"),
        "control": word_cost(of, RETAINED, "control"),
        "base_cost": word_cost(of, RETAINED, "perturbed", "base"),
        "harm": _by_token(of, beyond_base(of, RETAINED, "perturbed")),
        "forgotten_points": _disagreement(of, FORGOTTEN, "default"),
        "harm_points": _by_token(of, _disagreement(of, RETAINED, "perturbed")),
    }
    values |= {query: _ngram_costs(of, query) for query in NGRAM_QUERIES}
    behind = [of.get((RETAINED, "perturbed", model), []) for model in ("unlearned", "base")]
    values["maxlogit"] = minus(*(by_item(own, mean_maxlogit) for own in behind))
    values["maxlogit_std"] = minus(*(spread_by_item(own) for own in behind))
    for role in (RETAINED, NEAR):
        values[f"word: {role}"] = inserted_words(of.get((role, "perturbed", "unlearned"), []))
    return {name: value for name, value in values.items() if value}


def _ngram_costs(of: Places, query: str) -> Answers:
    costs = flat(word_cost_beyond_base(of, RETAINED, query))
    return by_ngram(of.get((RETAINED, query, "unlearned"), []), lambda sample: costs.get(sample.item))


def _by_token(of: Places, harm: Answers) -> Answers:
    """The mean harm to the texts with each forget-token; where it is not known, the harm to each text."""
    harm_of, samples = flat(harm), of.get((RETAINED, "perturbed", "unlearned"), [])
    return means((task, s.inserted or str(s.id), harm_of[s.item]) for task, s in samples if s.item in harm_of)


def _disagreement(of: Places, role: str, query: str) -> Answers:
    """In percent of the tokens of each text."""
    samples = of.get((role, query, "unlearned"), [])
    return by_item(samples, lambda s: None if s.agreement is None else 100 * (1 - s.agreement))


def run_rows(m: Material) -> pd.DataFrame:
    """A row for each run of this world with held-out texts: SETTING, seed, level, `measures`.

    `level`: the mean of `forgotten`; NaN where it was not measured. Of several runs of a setting's seed, the one with
    most measures.
    """
    about = m.about.set_index("number")
    rows = []
    for number, run in enumerate(m.runs):
        if run.done and about.loc[number, "world"] == m.world and (values := measures(m, run)):
            level = mean_of(values["forgotten"]) if "forgotten" in values else math.nan
            rows.append({**about.loc[number, [*SETTING, "seed"]].to_dict(), "level": level, **values})
    if not rows:
        return pd.DataFrame()
    frame = pd.DataFrame(rows)
    fullest = frame.count(axis="columns").sort_values(ascending=False, kind="stable").index
    return frame.loc[fullest].drop_duplicates(["setting", "seed"]).sort_index()


def by_forget_token(values: Answers, row: pd.Series, measure: str) -> Answers:
    """Values of a run by forget-token, where the measure is of what one does, and the tokens are known."""
    words = row.get(_tokens_of(measure))
    return by_word(values, words) if isinstance(words, dict) else values


def items_of(rows: pd.DataFrame, measure: str) -> str:
    """What `by_forget_token` makes the items of these runs, in words."""
    name = _tokens_of(measure)
    return "inserted words" if name in rows and rows[name].notna().all() else "texts"


def _tokens_of(measure: str) -> str:
    """The measure that has the forget-tokens which this one is about."""
    return f"word: {WORD_OF.get(measure)}"
