"""The figures of a report, in the order of the page; Figures 1 and 4 of the paper."""

from __future__ import annotations

from collections.abc import Iterator

import altair as alt
import pandas as pd

from unlearn.analysis.report import attacks, by_word, charts, curves, search, trade_off, training
from unlearn.analysis.report.charts import Look
from unlearn.analysis.report.curves import ROLES
from unlearn.analysis.report.figure import Figure
from unlearn.analysis.report.material import Material
from unlearn.analysis.report.trade_off import INTERVALS
from unlearn.records.names import NGRAM_SIZES, text_role

SIMILARITY = {"similarity-least": "least", "similarity-mean": "mean", "similarity-most": "most"}
NGRAMS = {f"ngram-{n}": n for n in NGRAM_SIZES}


def figures(m: Material) -> Iterator[Figure]:
    """Those for which there are results, in the order of the page."""
    make = (
        trade_off.figure,
        figure_1,
        curves.figure_2,
        curves.figure_3,
        figure_4,
        by_word.figure,
        attacks.figure,
        attacks.levels,
        training.course,
        training.training,
    )
    for one in make:
        figure = one(m)
        if figure is not None:
            yield figure
    yield from curves.further(m)
    yield from search.figures(m)


def _of_chosen(m: Material, measure: str, against: str = "") -> pd.DataFrame:
    """Base model and chosen settings: group (method or Base), rna, role, query, mean, low, high, seeds, missing."""
    rows = m.means_of(measure, against=against)
    rows = rows[rows["setting"].isin(list(m.shown))]
    chosen = rows.assign(group=rows["method"], rna=charts.noise(rows["nu"]))
    base = m.means_of(measure, model="base", against=against).assign(group="Base", rna="without", missing="")
    return pd.concat([base, chosen])[["group", "rna", "role", "query", "mean", "low", "high", "seeds", "missing"]]


def figure_1(m: Material) -> Figure | None:
    """MaxLogit distributions; accuracies on retained and forgotten knowledge, default and perturbed, RM and RNA."""
    rows = _of_chosen(m, "acc")
    rows = rows[rows["role"].isin(ROLES) & rows["query"].isin(["default", "perturbed"])]
    if rows.empty:
        return None
    rows = rows.sort_values("role", key=lambda role: role != ROLES[0], kind="stable")
    rows["kind"] = rows["rna"].map({"with RNA": "RNA", "without": "RM"}) + ", " + rows["query"]
    densities = training.maxlogits(m)
    groups = list(dict.fromkeys(rows["group"]))
    kinds = ["RM, default", "RM, perturbed", "RNA, default", "RNA, perturbed"]

    def chart(look: Look) -> alt.ConcatChart:
        y = alt.Y("mean:Q", title="accuracy in %", scale=alt.Scale(domain=[0, 100]))
        panels = [
            charts.bars(part, look, groups=groups, kinds=kinds, y=y, title=f"{role}: accuracy")
            for role, part in rows.groupby("role", sort=False)
        ]
        first = [] if densities.empty else [training.density(densities, look)]
        return alt.concat(*first, *panels, columns=3).resolve_scale(color="independent", strokeDash="independent")

    left = "Left: MaxLogit (Eq. 11) of perturbed queries; then accuracies" if len(densities) else "Accuracies"
    note = "" if len(densities) else " No run measured MaxLogit (eval=paper, or eval.maxlogit.tokens=15)."
    data = pd.concat([densities.assign(panel="maxlogit"), rows.assign(panel=rows["role"])], ignore_index=True)
    title = "Figure 1 · Confidence and accuracy under perturbation"
    return Figure("figure_1", title, f"{left} with and without RNA. {INTERVALS} {m.choice}{note}", data, chart)


def figure_4(m: Material) -> Figure | None:
    """Accuracy on retained knowledge, and the cost in retained texts, against the n-grams' similarity and length."""
    questions = _of_chosen(m, "acc")
    texts = _of_chosen(m, "nats", "default")
    rows = pd.concat(
        [
            questions[questions["role"] == "retain"].assign(unit="accuracy on retained in %"),
            texts[texts["role"] == text_role("retain")].assign(unit="cost in retained texts, nats a token"),
        ]
    )
    rows = rows[rows["query"].isin([*SIMILARITY, *NGRAMS])]
    if rows.empty:
        return None
    rows = rows.assign(similarity=rows["query"].map(SIMILARITY), n=rows["query"].map(NGRAMS))
    names = list(dict.fromkeys(rows["group"]))

    def chart(look: Look) -> alt.ConcatChart:
        level = alt.Axis(labelAngle=0)
        similarity = alt.X("similarity:O", sort=list(SIMILARITY.values()), title="similarity to its text", axis=level)
        length = alt.X("n:O", title="n of the n-gram", axis=level)
        panels = [
            charts.curves(
                part,
                look,
                x=x,
                y=alt.Y("mean:Q", title=unit, scale=charts.percent(part) if "%" in unit else alt.Scale(zero=True)),
                colour="group",
                scale=charts.colours(names, charts.METHOD_COLOURS),
                dash=charts.noise_dash(),
                title=name,
            )
            for unit, of_unit in rows.groupby("unit", sort=False)
            for column, x, name in (("similarity", similarity, "similarity"), ("n", length, "length"))
            for part in [of_unit.dropna(subset=column)]
            if len(part)
        ]
        return charts.side_by_side(*panels, columns=2)

    caption = (
        "An option of retained questions is replaced by an n-gram of the forget corpora, or the n-gram is inserted "
        f"into retained texts. {INTERVALS} {m.choice}"
    )
    return Figure("figure_4", "Figure 4 · Which forget-tokens are harmful?", caption, rows, chart)
