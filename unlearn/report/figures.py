"""The paper's figures, and what else one wants to see of a grid, each with the table behind it."""

from __future__ import annotations

from collections.abc import Iterator

import altair as alt
import pandas as pd

from unlearn.report import charts, curves, published
from unlearn.report.charts import Look
from unlearn.report.figure import Figure
from unlearn.report.material import Material
from unlearn.report.phases import phases

SIMILARITY = {"similarity-least": "least", "similarity-mean": "mean", "similarity-most": "most"}
ROLES = ("retain", "forget")
NGRAMS = {f"ngram-{n}": n for n in (2, 4, 8, 16)}


def figures(material: Material) -> Iterator[Figure]:
    """All of them, in the order of the page."""
    yield figure_1(material)
    yield figure_2(material)
    yield figure_3(material)
    yield figure_4(material)
    yield pareto(material)
    yield from curves.further(material)
    yield curves.training(material)


def _missing(name: str, title: str, wanted: str) -> Figure:
    return Figure(name, title, f"Nothing to show: {wanted}", pd.DataFrame())


def figure_1(m: Material) -> Figure:
    """MaxLogit distributions; accuracies on retained and forgotten knowledge, default and perturbed, RM and RNA."""
    title = "Figure 1 · Confidence and accuracy under perturbation"
    rows = _bar_rows(m)
    if rows.empty:
        return _missing(
            "figure_1", title, "no finished run has retain and forget tasks in default and perturbed queries."
        )
    logits = curves.maxlogits(m)
    groups = list(dict.fromkeys(rows["group"]))
    kinds = ["RM, default", "RM, perturbed", "RNA, default", "RNA, perturbed"]
    data = pd.concat([logits.assign(panel="maxlogit"), rows.assign(panel=rows["role"])], ignore_index=True)

    def chart(look: Look) -> alt.ConcatChart:
        y = alt.Y("mean:Q", title="accuracy in %", scale=alt.Scale(zero=True, domain=[0, 100]))
        panels = [
            charts.bars(part, look, groups=groups, kinds=kinds, y=y, title=f"{role}: accuracy")
            for role, part in rows.groupby("role", sort=False)
        ]
        first = [] if logits.empty else [curves.density(logits, look)]
        return alt.concat(*first, *panels, columns=3).resolve_scale(color="independent", strokeDash="independent")

    told = "" if len(logits) else " No run measured MaxLogit (eval=paper, or eval.maxlogit.tokens=15)."
    return Figure(
        "figure_1",
        title,
        f"Left: MaxLogit (Eq. 11) of perturbed queries. Others: accuracy of RM models with and without RNA, with 95 % "
        f"intervals. {m.choice}{told}",
        data,
        chart,
    )


def _bar_rows(m: Material) -> pd.DataFrame:
    """Base and chosen settings: group, kind, role, query, mean, low, high, seeds, missing."""
    columns = ["group", "kind", "role", "query", "mean", "low", "high", "seeds", "missing"]
    rows = m.unlearned
    if rows.empty:
        return pd.DataFrame(columns=columns)
    rows = rows[rows["setting"].isin(m.labels)].assign(group=lambda d: d["method"])
    rows["kind"] = rows["nu"].gt(0).map({True: "RNA", False: "RM"}) + ", " + rows["query"]
    base = m.base.assign(group="Base", kind=lambda d: "RM, " + d["query"], missing="")
    both = pd.concat([base, rows])
    both = both[both["query"].isin(["default", "perturbed"]) & both["role"].isin(["retain", "forget"])]
    return both.sort_values("role", key=lambda r: r != "retain", kind="stable")[columns]


def _measures(rows: pd.DataFrame) -> pd.DataFrame:
    """Retained and forgotten knowledge, in default and perturbed queries."""
    rows = rows[rows["role"].isin(ROLES) & rows["query"].isin(["default", "perturbed"])]
    return rows.sort_values("role", key=lambda role: role != ROLES[0], kind="stable")


def figure_2(m: Material) -> Figure:
    """Accuracy against the method's own coefficient, without RNA."""
    title = "Figure 2 · Coefficients c and β against robustness"
    parts = {}
    arguments = [column for column in m.about.columns if column.startswith("method.")]
    for argument in arguments:
        rows = curves.against(m, argument)
        rows = rows[rows["nu"] == 0] if len(rows) and (rows["nu"] == 0).any() else rows
        for method, part in rows.groupby("method", sort=False) if len(rows) else ():
            parts[f"{method}: {argument.removeprefix('method.').replace('beta', 'β')}"] = _measures(part)
    parts = {name: part for name, part in parts.items() if len(part)}
    if not parts:
        return _missing("figure_2", title, "no two runs differ in nothing but a method's coefficient (sweep=figure_2).")
    data = pd.concat([part.assign(panel=name) for name, part in parts.items()], ignore_index=True)

    def chart(look: Look) -> alt.ConcatChart:
        return charts.side_by_side(
            *(
                curves.panel(of_role, look, title=f"{name}, {role}", axis=name.rpartition(": ")[2])
                for role in ROLES
                for name, part in parts.items()
                for of_role in [part[part["role"] == role]]
            ),
            columns=len(parts),
        )

    caption = "Accuracy against c (RMU, RSV) and β (Adaptive RMU), means over seeds with 95 % intervals."
    rna = " These runs have RNA: none without it were found." if (data["nu"] > 0).all() else " Without RNA."
    return Figure("figure_2", title, caption + rna, data, chart)


def figure_3(m: Material) -> Figure:
    """Accuracy against the noise scale, with the phases that section 6.6 describes."""
    title = "Figure 3 · The noise scale ν"
    rows = curves.against(m, "rna.nu")
    noisy = _measures(rows[rows["x"] > 0]) if len(rows) else rows
    if noisy.empty:
        return _missing("figure_3", title, "no two runs differ in nothing but rna.nu (sweep=noise_scale).")
    plain = _measures(rows[rows["x"] == 0])
    bands = {
        str(method): phases(part, plain[plain["method"] == method])
        for method, part in noisy.groupby("method", sort=False)
    }

    def chart(look: Look) -> alt.ConcatChart:
        panels = []
        for role, of_role in noisy.groupby("role", sort=False):
            for method, part in of_role.groupby("method", sort=False):
                main = curves.panel(part, look, title=f"{method}, {role}", axis="ν", log=True, scaled_to=of_role)
                beside = curves.without_rna(plain[(plain["method"] == method) & (plain["role"] == role)])
                rule = curves.published_rule(published.NU.get(method), look) if m.paper else []
                panels.append(alt.layer(*curves.phase_bands(bands[method], look), *rule, *beside, main))
        return charts.side_by_side(*panels, columns=noisy["method"].nunique())

    marked = " Dotted vertical line: the ν that the paper found best (published)." if m.paper else ""
    return Figure(
        "figure_3",
        title,
        "Means over seeds with 95 % intervals; horizontal lines: the same without RNA. Shaded, the phases of section "
        "6.6, read off the means under perturbation: I, retained knowledge gains; II, it declines; III, it rises again "
        f"and forgotten knowledge with it.{marked}",
        pd.concat([noisy, plain], ignore_index=True),
        chart,
    )


def figure_4(m: Material) -> Figure:
    """Accuracy on retained knowledge against similarity and length of the n-grams."""
    title = "Figure 4 · Which forget-tokens are harmful?"
    rows = m.unlearned
    wanted = [*SIMILARITY, *NGRAMS]
    if rows.empty or not rows["query"].isin(wanted).any():
        return _missing("figure_4", title, "no run was asked similarity and n-gram queries (eval=paper).")
    rows = rows[rows["setting"].isin(m.labels)].assign(series=lambda d: d["setting"].map(m.labels))
    both = pd.concat([m.base.assign(series="Base", method="Base", nu=0.0), rows])
    both = both[(both["role"] == "retain") & both["query"].isin(wanted)]
    both["rna"] = both["nu"].gt(0).map({True: "with RNA", False: "without"})
    both = both.drop(columns="setting")
    both["similarity"], both["n"] = both["query"].map(SIMILARITY), both["query"].map(NGRAMS)
    left, right = both.dropna(subset="similarity"), both.dropna(subset="n")
    names = list(dict.fromkeys(both["method"]))

    def chart(look: Look) -> alt.ConcatChart:
        colour = alt.Color("method:N", title=None, scale=charts.colours(names, charts.METHOD_COLOURS))
        dash = alt.StrokeDash(
            "rna:N", title=None, scale=alt.Scale(domain=["without", "with RNA"], range=[[1, 0], [5, 3]])
        )

        def up(part: pd.DataFrame) -> alt.Y:
            return alt.Y("mean:Q", title="accuracy on retained in %", scale=charts.percent(part))

        level = alt.Axis(labelAngle=0)
        similarity = alt.X(
            "similarity:O",
            sort=list(SIMILARITY.values()),
            title="similarity to its document",
            axis=level,
        )
        length = alt.X("n:O", title="n of the n-gram", axis=level)
        panels = [
            charts.curves(part, look, x=x, y=up(part), colour=colour, dash=dash, detail=["series"], title=name)
            for part, x, name in ((left, similarity, "similarity"), (right, length, "length"))
            if len(part)
        ]
        return charts.side_by_side(*panels, columns=2)

    caption = f"Retained knowledge with an option replaced by an n-gram of the forget corpora. {m.choice}"
    return Figure("figure_4", title, caption, both, chart)


def pareto(m: Material) -> Figure:
    """Forgetting against robust retention, a point for each setting."""
    title = "Forgetting against robust retention"
    rows = m.unlearned
    both = _pairs(rows) if len(rows) else rows
    if both.empty:
        return _missing("pareto", title, "no finished run has both, retain tasks under perturbation and forget tasks.")
    base = _pairs(m.base.assign(method="Base", nu=0.0)).assign(front=False)
    data = pd.concat([base, _front(both)], ignore_index=True).drop(columns="setting")
    data["rna"] = data["nu"].gt(0).map({True: "with RNA", False: "without"})
    names = list(dict.fromkeys(["Base", *both["method"]]))

    def chart(look: Look) -> alt.LayerChart:
        pick = alt.selection_point(fields=["method"], bind="legend")
        across, up = (charts.span(data[name], 3) for name in ("forgotten", "retained"))
        x = alt.X("forgotten:Q", title="accuracy on forgotten in % (default)", scale=across)
        y = alt.Y("retained:Q", title="accuracy on retained in % (perturbed)", scale=up)
        colour = alt.Color("method:N", title=None, scale=charts.colours(names, charts.METHOD_COLOURS))
        shape = alt.Shape(
            "rna:N", title=None, scale=alt.Scale(domain=["without", "with RNA"], range=["circle", "diamond"])
        )
        shown = alt.condition(pick, alt.value(0.9), alt.value(0.08))
        plane = alt.Chart(data)
        rules = [
            plane.mark_rule(opacity=0.25, clip=True).encode(
                x=x, y=alt.Y("retained_low:Q", title=y["title"]), y2="retained_high:Q", color=colour
            ),
            plane.mark_rule(opacity=0.25, clip=True).encode(
                x=alt.X("forgotten_low:Q", title=x["title"]), x2="forgotten_high:Q", y=y, color=colour
            ),
        ]
        front = alt.Chart(data[data["front"]]).mark_line(
            interpolate="step-after", opacity=0.5, color=look.ink, strokeDash=[2, 3]
        )
        points = plane.mark_point(filled=True, size=60).encode(
            x=x, y=y, color=colour, shape=shape, opacity=shown, tooltip=charts.tooltip(data)
        )
        line = front.encode(x=x, y=y)
        size = {"width": 2 * look.width, "height": int(1.6 * look.height)}
        return alt.layer(*(rules if len(data) <= 200 else ()), line, points).add_params(pick).properties(**size)

    caption = (
        "A point for each setting (mean over seeds, 95 % intervals): to the left it has forgotten more, higher up it "
        "is more robust. Dotted: the settings that no other one beats in both. A click into the legend singles out a "
        "method."
    )
    return Figure("pareto", title, caption, data, chart)


def _pairs(rows: pd.DataFrame) -> pd.DataFrame:
    """Each setting with its accuracy on forgotten (default) and on retained (perturbed) knowledge."""
    keys = ["setting", "method", "coefficient", "nu", "other"]
    sides = []
    for role, query, name in (("forget", "default", "forgotten"), ("retain", "perturbed", "retained")):
        side = rows[(rows["role"] == role) & (rows["query"] == query)]
        named = {"mean": name, "low": f"{name}_low", "high": f"{name}_high"}
        sides.append(side[[*keys, "mean", "low", "high", "seeds", "missing"]].rename(columns=named))
    return sides[0].merge(sides[1].drop(columns=["seeds", "missing"]), on=keys)


def _front(pairs: pd.DataFrame) -> pd.DataFrame:
    """With `front`: whether no other setting has forgotten at least as much and retained more."""
    ordered = pairs.sort_values(["forgotten", "retained"], ascending=[True, False])
    best = ordered["retained"].cummax()
    return ordered.assign(front=ordered["retained"].eq(best) & ~best.duplicated())
