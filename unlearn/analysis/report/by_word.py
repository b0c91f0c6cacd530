"""What each inserted word costs in retained texts, and which of its properties tells that.

A word's cost is that of the unlearned model beyond the base model's, in nats for each token behind it, averaged over
the texts that it is in. Words are drawn at random, as seeds are: the mean cost of a kind of word has an interval over
seeds and words (`two_way`), that of one word an interval over seeds and its texts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from unlearn.analysis.collect import Run
from unlearn.analysis.report import charts
from unlearn.analysis.report.answers import Answers, flat, places
from unlearn.analysis.report.charts import Look
from unlearn.analysis.report.figure import Figure, Table
from unlearn.analysis.report.material import Material
from unlearn.analysis.report.text_costs import word_cost_beyond_base
from unlearn.analysis.settings import Setting
from unlearn.records.names import text_role
from unlearn.records.terms import TermProperties, read_terms
from unlearn.statistics.intervals import Interval, crossed, over_items, rank_correlation, two_way

ByWord = dict[str, np.ndarray]  # word -> float [seeds, texts]
PROPERTIES = {
    "similarity": "similarity to the forget texts",
    "count": "times in the forget texts",
    "tokens": "number of tokens",
}  # of `TermProperties`
KINDS = {"perturbed": "forget-token", "control": "control term"}
FEWEST = 5  # words, of which a correlation has an interval


def costs(m: Material, run: Run) -> dict[str, Answers]:
    """kind of query -> word -> what it costs in each retained text, as far as both models have read it."""
    of, by_query = places(m, run), dict[str, Answers]()
    for (role, query, model), asked in of.items():
        if (role, model) == (text_role("retain"), "unlearned"):
            cost_of = flat(word_cost_beyond_base(of, role, query))
            for _, sample in asked:
                if sample.inserted is not None and sample.item in cost_of:
                    of_word = by_query.setdefault(query, {}).setdefault(sample.inserted, {})
                    of_word[sample.task, sample.id] = cost_of[sample.item]
    return by_query


def by_word(m: Material, setting: Setting) -> dict[str, ByWord]:
    """kind of query -> the costs of each word, over the seeds that were asked it and the texts that all these have."""
    of_seeds = [costs(m, run) for run in m.runs_of(setting).values()]
    by_query: dict[str, ByWord] = {}
    for query in dict.fromkeys(query for of_seed in of_seeds for query in of_seed):
        asked = [of_seed[query] for of_seed in of_seeds if query in of_seed]
        for word in asked[0]:
            texts = crossed([{word: of_seed.get(word, {})} for of_seed in asked])
            if texts:
                by_query.setdefault(query, {})[word] = texts[0]
    return by_query


def of_word(values: np.ndarray) -> Interval:
    """The mean cost of a word: over seeds and texts, of one seed over texts."""
    return two_way([values]) if len(values) > 1 else over_items(values[0])


def of_words(words: ByWord) -> Interval:
    """The mean cost of all words, each of which counts alike: over seeds and words, of one seed over words."""
    return of_word(np.stack([values.mean(axis=1) for values in words.values()], axis=1))


def properties(m: Material, setting: Setting) -> dict[str, TermProperties]:
    """Those that were measured for a run of this setting (`unlearn claims --terms`); maybe none."""
    for run in m.runs_of(setting).values():
        with m.reading(run):
            if terms := read_terms(run.folder):
                return terms
    return {}


def pairs(words: ByWord, terms: Mapping[str, TermProperties], name: str) -> tuple[list[float], list[float]] | None:
    """A property and the mean cost of each word; None if the words are too few, or alike in either."""
    measured = [word for word in words if word in terms]
    x, y = [float(getattr(terms[word], name)) for word in measured], [float(words[word].mean()) for word in measured]
    return (x, y) if len(measured) >= FEWEST and len(set(x)) > 1 and len(set(y)) > 1 else None


def table(m: Material) -> Table | None:
    """What each word costs, of the chosen settings."""
    return table_of(m, {f"{method}, RNA" if rna else method: s for s, (method, rna) in m.shown.items()})


def table_of(m: Material, settings: Mapping[str, Setting]) -> Table | None:
    """A row for each kind of word, and for each word, the dearest first; a column for each setting, by its heading."""
    by_setting = {name: words for name, setting in settings.items() if (words := by_word(m, setting))}
    if not by_setting:
        return None
    terms = {word: term for setting in settings.values() for word, term in properties(m, setting).items()}
    rows: list[dict[str, Any]] = []
    for query in dict.fromkeys(query for of in by_setting.values() for query in of):
        columns = {name: of[query] for name, of in by_setting.items() if query in of}
        rows += _rows(KINDS.get(query, query), columns, terms)
    note = (
        "What an inserted word costs in retained texts beyond what it costs the base model, in nats for each token "
        "behind it. A kind of word: the mean over its words, with the 95 % interval over seeds and words. A word: the "
        "mean over its texts, with the interval over seeds and texts, which is wide where the texts are few. Of a "
        "single seed, over words and over texts."
    )
    return Table("words", "What each word costs", note, pd.DataFrame(rows), keys=2)


def _rows(kind: str, columns: Mapping[str, ByWord], terms: Mapping[str, TermProperties]) -> Iterator[dict[str, Any]]:
    """The mean of a kind of word, then each word."""
    first = next(iter(columns.values()))
    words = dict.fromkeys(word for of in columns.values() for word in of)
    yield (
        {"word": f"all {len(words)}", "kind": kind, "texts": sum(values.shape[1] for values in first.values())}
        | (_about(None) if terms else {})
        | {name: _text(of_words(of)) for name, of in columns.items()}
    )
    for word in sorted(words, key=lambda word: -float(first[word].mean()) if word in first else math.inf):
        texts = max(of[word].shape[1] for of in columns.values() if word in of)
        about = _about(terms.get(word)) if terms else {}
        cells = {name: _text(of_word(of[word])) if word in of else "" for name, of in columns.items()}
        yield {"word": word, "kind": kind, "texts": texts, **about, **cells}


def _about(term: TermProperties | None) -> dict[str, float | None]:
    return {title: None if term is None else round(getattr(term, name), 3) for name, title in PROPERTIES.items()}


def _text(interval: Interval) -> str:
    ends = "" if math.isnan(interval.low) else f" ({interval.low:+.2f} .. {interval.high:+.2f})"
    return f"{interval.mean:+.2f}{ends}"


def figure(m: Material) -> Figure | None:
    """The cost of each word against its properties, of the chosen settings without RNA."""
    rows, notes = [], []
    for setting, (method, rna) in m.shown.items():
        terms = {} if rna else properties(m, setting)
        by_query = by_word(m, setting) if terms else {}
        for query, words in by_query.items():
            about = {"kind": KINDS.get(query, query), "method": method}
            mean_costs = {word: float(values.mean()) for word, values in words.items() if word in terms}
            rows += [{"word": word, **about, "cost": cost, **vars(terms[word])} for word, cost in mean_costs.items()]
        notes += _correlations(method, by_query.get("perturbed", {}), terms)
    if not rows:
        return None
    data = pd.DataFrame(rows)
    methods = list(dict.fromkeys(data["method"]))

    def chart(look: Look) -> alt.ConcatChart:
        return charts.side_by_side(*(_panel(data, look, name, methods) for name in PROPERTIES))

    caption = (
        "What an inserted word costs in retained texts without RNA, beyond what it costs the base model, against three "
        "of its properties: the similarity of its states at layer l to those of the forget texts, both less the mean "
        "of all corpora; how often it is in the forget texts that were trained on; its number of tokens. A point for "
        "each word, the mean over seeds and its texts."
    )
    if notes:
        caption += f" Rank correlations of forget-tokens with 95 % intervals: {'; '.join(notes)}."
    return Figure("words", "Which words cost much?", f"{caption}{m.one_world}", data, chart)


def _correlations(method: str, words: ByWord, terms: Mapping[str, TermProperties]) -> list[str]:
    columns = {title: pairs(words, terms, name) for name, title in PROPERTIES.items()}
    texts = [f"{title} {_text(rank_correlation(*xy))}" for title, xy in columns.items() if xy is not None]
    return [f"{method}, {', '.join(texts)}"] if texts else []


def _panel(data: pd.DataFrame, look: Look, name: str, methods: Sequence[str]) -> alt.Chart:
    scale = alt.Scale(type="symlog" if name == "count" else "linear", zero=False, padding=look.size)
    axis = alt.Axis() if name == "similarity" else alt.Axis(tickMinStep=1, format="d")
    return (
        alt.Chart(data)
        .mark_point(size=3 * look.size, opacity=0.8)
        .encode(
            x=alt.X(f"{name}:Q", title=PROPERTIES[name], scale=scale, axis=axis),
            y=alt.Y("cost:Q", title="cost of the word, nats a token"),
            color=charts.method_colour(methods),
            shape=alt.Shape("kind:N", title=None),
            tooltip=charts.tooltip(data),
        )
        .properties(width=look.width, height=look.height)
    )
