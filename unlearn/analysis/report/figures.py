"""The paper's figures and further ones of a grid, each with its table."""

from __future__ import annotations

from collections.abc import Iterator

import altair as alt
import pandas as pd

from unlearn.analysis.report import attacks, charts, curves, logs, texts
from unlearn.analysis.report.charts import Look
from unlearn.analysis.report.curves import INTERVALS, ROLES
from unlearn.analysis.report.figure import Figure
from unlearn.analysis.report.frames import SETTING
from unlearn.analysis.report.material import Material
from unlearn.records.names import NGRAM_SIZES

SIMILARITY = {"similarity-least": "least", "similarity-mean": "mean", "similarity-most": "most"}
NGRAMS = {f"ngram-{n}": n for n in NGRAM_SIZES}
RULES = 200  # points of a plane up to which their intervals are drawn


def figures(m: Material) -> Iterator[Figure]:
    """All of them, in the order of the page."""
    yield figure_1(m)
    yield curves.figure_2(m)
    yield curves.figure_3(m)
    yield figure_4(m)
    yield from curves.further(m)
    yield pareto(m)
    yield texts.figure(m)
    yield texts.which_ngrams(m)
    yield texts.course(m)
    yield attacks.figure(m)
    yield attacks.levels(m)
    yield logs.training(m)


def _missing(name: str, title: str, wanted: str) -> Figure:
    return Figure(name, title, f"Nothing to show: {wanted}", pd.DataFrame())


def _standing(m: Material) -> pd.DataFrame:
    """Base model and chosen settings: group (method or Base), rna, role, query, mean, low, high, seeds, missing."""
    columns = ["group", "rna", "role", "query", "mean", "low", "high", "seeds", "missing"]
    rows = m.unlearned
    if rows.empty:
        return pd.DataFrame(columns=columns)
    own = rows[rows["setting"].isin(m.standing)]
    own = own.assign(group=own["method"], rna=own["nu"].gt(0).map(charts.NOISE))
    base = m.base.assign(group="Base", rna="without", missing="")
    return pd.concat([base, own])[columns]


def figure_1(m: Material) -> Figure:
    """MaxLogit distributions; accuracies on retained and forgotten knowledge, default and perturbed, RM and RNA."""
    title = "Figure 1 · Confidence and accuracy under perturbation"
    rows = _standing(m)
    rows = rows[rows["role"].isin(ROLES) & rows["query"].isin(["default", "perturbed"])]
    if rows.empty:
        return _missing("figure_1", title, "no finished run has retain or forget tasks.")
    rows = rows.sort_values("role", key=lambda role: role != ROLES[0], kind="stable")
    rows["kind"] = rows["rna"].map({"with RNA": "RNA", "without": "RM"}) + ", " + rows["query"]
    densities = logs.maxlogits(m)
    groups = list(dict.fromkeys(rows["group"]))
    kinds = ["RM, default", "RM, perturbed", "RNA, default", "RNA, perturbed"]

    def chart(look: Look) -> alt.ConcatChart:
        y = alt.Y("mean:Q", title="accuracy in %", scale=alt.Scale(domain=[0, 100]))
        panels = [
            charts.bars(part, look, groups=groups, kinds=kinds, y=y, title=f"{role}: accuracy")
            for role, part in rows.groupby("role", sort=False)
        ]
        first = [] if densities.empty else [logs.density(densities, look)]
        return alt.concat(*first, *panels, columns=3).resolve_scale(color="independent", strokeDash="independent")

    left = "Left: MaxLogit (Eq. 11) of perturbed queries; then accuracies" if len(densities) else "Accuracies"
    told = "" if len(densities) else " No run measured MaxLogit (eval=paper, or eval.maxlogit.tokens=15)."
    data = pd.concat([densities.assign(panel="maxlogit"), rows.assign(panel=rows["role"])], ignore_index=True)
    return Figure("figure_1", title, f"{left} with and without RNA. {INTERVALS} {m.choice}{told}", data, chart)


def figure_4(m: Material) -> Figure:
    """Accuracy on retained knowledge against similarity and length of the n-grams."""
    title = "Figure 4 · Which forget-tokens are harmful?"
    rows = _standing(m)
    rows = rows[(rows["role"] == "retain") & rows["query"].isin([*SIMILARITY, *NGRAMS])]
    if rows.empty:
        return _missing("figure_4", title, "no run was asked similarity and n-gram queries (eval=paper).")
    rows = rows.assign(similarity=rows["query"].map(SIMILARITY), n=rows["query"].map(NGRAMS))
    names = list(dict.fromkeys(rows["group"]))

    def chart(look: Look) -> alt.ConcatChart:
        level = alt.Axis(labelAngle=0)
        similarity = alt.X(
            "similarity:O", sort=list(SIMILARITY.values()), title="similarity to its document", axis=level
        )
        length = alt.X("n:O", title="n of the n-gram", axis=level)
        panels = [
            charts.curves(
                part,
                look,
                x=x,
                y=alt.Y("mean:Q", title="accuracy on retained in %", scale=charts.percent(part)),
                colour="group",
                scale=charts.colours(names, charts.METHOD_COLOURS),
                dash=charts.noise_dash(),
                title=name,
            )
            for column, x, name in (("similarity", similarity, "similarity"), ("n", length, "length"))
            for part in [rows.dropna(subset=column)]
            if len(part)
        ]
        return charts.side_by_side(*panels, columns=2)

    caption = f"Retained knowledge with an option replaced by an n-gram of the forget corpora. {INTERVALS} {m.choice}"
    return Figure("figure_4", title, caption, rows, chart)


def pareto(m: Material) -> Figure:
    """Forgetting against robust retention, a point for each setting."""
    title = "Forgetting against robust retention"
    rows = m.unlearned
    both = _pairs(rows[rows["world"] == m.world]) if len(rows) else rows
    if both.empty:
        return _missing("pareto", title, "no finished run has both, retain tasks under perturbation and forget tasks.")
    base = _pairs(m.base.assign(method="Base", nu=0.0)).assign(front=False)
    data = pd.concat([base, _front(both)], ignore_index=True).drop(columns="setting")
    data["rna"] = data["nu"].gt(0).map(charts.NOISE)
    names = list(dict.fromkeys(["Base", *both["method"]]))

    def chart(look: Look) -> alt.LayerChart | alt.FacetChart:
        pick = alt.selection_point(fields=["method"], bind="legend")
        across, up = (charts.span(data[name], 3) for name in ("forgotten", "retained"))
        x = alt.X("forgotten:Q", title="accuracy on forgotten in % (default)", scale=across)
        y = alt.Y("retained:Q", title="accuracy on retained in % (perturbed)", scale=up)
        colour = charts.method_colour(names)
        plane = alt.Chart(data)
        rule = plane.mark_rule(opacity=0.25, clip=True)
        rules = [
            rule.encode(x=x, y=alt.Y("retained_low:Q", title=y["title"]), y2="retained_high:Q", color=colour),
            rule.encode(x=alt.X("forgotten_low:Q", title=x["title"]), x2="forgotten_high:Q", y=y, color=colour),
        ]
        front = alt.Chart(data[data["front"]]).mark_line(
            interpolate="step-after", opacity=0.5, color=look.ink, strokeDash=[2, 3]
        )
        points = plane.mark_point(filled=True, size=60).encode(
            x=x,
            y=y,
            color=colour,
            shape=charts.noise_shape(),
            opacity=alt.condition(pick, alt.value(0.9), alt.value(0.08)),
            tooltip=charts.tooltip(data),
        )
        size = {"width": 2 * look.width, "height": int(1.6 * look.height)}
        layers = [*(rules if len(data) <= RULES else ()), front.encode(x=x, y=y), points]
        return alt.layer(*layers).add_params(pick).properties(**size)

    caption = (
        "A point for each setting: to the left it has forgotten more, higher up it is more robust. Dotted: the "
        f"settings that no other one beats in both. {INTERVALS} A click into the legend singles out a method."
        f"{m.one_world}"
    )
    return Figure("pareto", title, caption, data, chart)


def _pairs(rows: pd.DataFrame) -> pd.DataFrame:
    """Each setting with its accuracy on forgotten (default) and on retained (perturbed) knowledge."""
    sides = []
    for role, query, name in (("forget", "default", "forgotten"), ("retain", "perturbed", "retained")):
        side = rows[(rows["role"] == role) & (rows["query"] == query)]
        named = {"mean": name, "low": f"{name}_low", "high": f"{name}_high"}
        sides.append(side[[*SETTING, "mean", "low", "high", "seeds", "missing"]].rename(columns=named))
    return sides[0].merge(sides[1].drop(columns=["seeds", "missing"]), on=SETTING)


def _front(pairs: pd.DataFrame) -> pd.DataFrame:
    """Add `front`: whether no other setting has forgotten at least as much and retained more."""
    ordered = pairs.sort_values(["forgotten", "retained"], ascending=[True, False])
    best = ordered["retained"].cummax()
    return ordered.assign(front=ordered["retained"].eq(best) & ~best.duplicated())
