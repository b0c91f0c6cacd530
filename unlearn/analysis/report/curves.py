"""Accuracy against a key of the configuration: Figure 2 (c and beta), Figure 3 (nu), and any other numeric key."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import altair as alt
import pandas as pd

from unlearn.analysis.report import charts
from unlearn.analysis.report.charts import Look
from unlearn.analysis.report.figure import Figure
from unlearn.analysis.report.material import Material
from unlearn.analysis.report.trade_off import INTERVALS
from unlearn.analysis.settings import differences, telling_keys

ROLES = ("retain", "forget")
MARGIN = 1.15  # how far beside the smallest and the largest nu an axis goes on, as a factor
MOST = 12  # curves that are drawn; the table of a figure has all
Behind = Callable[[pd.DataFrame, pd.DataFrame, Look], list[alt.Chart]]


def against(m: Material, key: str) -> pd.DataFrame:
    """Accuracies on retained and forgotten knowledge with `x`, a numeric key's value.

    `common` is what all of a curve's settings have in common, `curve` its name: the method, and what else tells it from
    the other curves. Only curves of at least two values.
    """
    rows, column = m.means_of("acc"), "nu" if key == "rna.nu" else key
    if rows.empty or column not in m.about:
        return pd.DataFrame()
    values = m.about[m.about["setting"].notna()].drop_duplicates("setting").set_index("setting")[column]
    rows = rows.assign(x=rows["setting"].map(values))
    rows = rows[rows["x"].notna() & rows["role"].isin(ROLES) & rows["query"].isin(["default", "perturbed"])]
    left_out = "rna" if key == "rna.nu" else key  # without noise, its scale has no meaning
    rows = rows.assign(common=[setting.without(left_out) for setting in rows["setting"]])
    rows = rows[rows.groupby("common", sort=False)["x"].transform("nunique") > 1]
    if rows.empty:
        return rows
    rows = rows.assign(curve=_names(m, rows, key))
    rows = rows.drop(columns=["setting", "world", "model", "task", "measure", "against"])
    # Curves can differ in what no name tells: these are numbered.
    number = rows.groupby("curve")["common"].transform(lambda common: pd.factorize(common)[0])
    rows["curve"] += number.map(lambda n: f" ({n + 1})" if n else "")
    place = {curve: number for number, curve in enumerate(rows["curve"].unique())}
    order = {"role": ROLES.index, "curve": place.get, "x": float}
    return rows.sort_values(list(order), key=lambda column: column.map(order[str(column.name)])).reset_index(drop=True)


def _names(m: Material, rows: pd.DataFrame, key: str) -> list[str]:
    """The name of each row's curve: the method and, if it has several curves, their differences."""
    about = m.about[m.about["setting"].notna()].drop_duplicates("setting").set_index("setting")
    about = about.loc[list(rows["setting"])]
    arguments = [c for c in about if str(c).startswith("method.") and pd.api.types.is_numeric_dtype(about[c])]
    parts = pd.DataFrame({"method": rows["method"]})
    short = about[arguments].rename(columns=lambda name: name.removeprefix("method."))
    parts["arguments"] = [differences(row, key.removeprefix("method.")) for row in short.to_dict("records")]
    parts["other"] = [differences(row, key) for row in about[telling_keys(m.about)].to_dict("records")]
    if key != "rna.nu":
        parts["noise"] = rows["nu"].map(lambda nu: f"ν = {nu:g}" if nu else "")
    shown = ["method"]
    for column in parts.columns[1:]:
        if (parts.groupby("method")[column].nunique() > 1).any() or column == "noise":
            shown.append(column)
    return [" ".join(part for part in row if part) for row in parts[shown].itertuples(index=False)]


def varying(m: Material) -> list[str]:
    """The numeric keys in which the runs differ."""
    keys = [str(c) for c in m.about if "." in str(c) and not str(c).startswith("eval.")]
    return [key for key in keys if pd.api.types.is_numeric_dtype(m.about[key])]


def figure_2(m: Material) -> Figure | None:
    """Accuracy against the method's own coefficients, without RNA where there are such runs."""
    parts = {}
    for argument in [key for key in varying(m) if key.startswith("method.")]:
        rows = against(m, argument)
        for _, of_method in rows.groupby("method", sort=False) if len(rows) else ():
            plain = of_method[of_method["nu"] == 0]
            for curve, part in (plain if len(plain) else of_method).groupby("curve", sort=False):
                parts[f"{curve}: {argument.removeprefix('method.').replace('beta', 'β')}"] = part
    if not parts:
        return None
    data = pd.concat([part.assign(panel=name) for name, part in parts.items()], ignore_index=True)
    shown = dict(list(parts.items())[:MOST])

    def chart(look: Look) -> alt.ConcatChart:
        return charts.side_by_side(
            *(
                panel(part[part["role"] == role], look, title=f"{name}, {role}", axis=name.rpartition(": ")[2])
                for role in ROLES
                for name, part in shown.items()
                if (part["role"] == role).any()
            ),
            columns=min(3, len(shown)),
        )

    caption = f"Accuracy against c (RMU, RSV) and β (Adaptive RMU). {INTERVALS}{_told(data, len(parts))}"
    title = "Figure 2 · Coefficients c and β against robustness"
    return Figure("figure_2", title, caption, data.drop(columns="common"), chart)


def figure_3(m: Material, behind: Behind | None = None) -> Figure | None:
    """Accuracy against the noise scale.

    Args:
        behind: what is drawn behind a curve, from the rows of its roles with RNA and without.
    """
    rows = against(m, "rna.nu")
    noisy = rows[rows["x"] > 0] if len(rows) else rows
    if noisy.empty:
        return None
    curves = list(dict.fromkeys(noisy["curve"]))
    shown = noisy[noisy["curve"].isin(curves[:MOST])]
    plain = dict(list(rows[rows["x"] == 0].groupby("common", sort=False)))
    nothing = rows.iloc[:0]

    def chart(look: Look) -> alt.ConcatChart:
        panels = []
        for role, of_role in shown.groupby("role", sort=False):
            for curve, part in of_role.groupby("curve", sort=False):
                before = plain.get(part["common"].iloc[0], nothing)
                backs = behind(shown[shown["curve"] == curve], before, look) if behind else []
                main = panel(part, look, title=f"{curve}, {role}", axis="ν", log=True, scaled_to=of_role)
                lines = _without_rna(before[before["role"] == role])
                panels.append(alt.layer(*backs, *lines, main))
        return charts.side_by_side(*panels, columns=min(3, len(curves)))

    caption = f"{INTERVALS} Horizontal lines: the same without RNA.{_told(rows, len(curves))}"
    return Figure("figure_3", "Figure 3 · The noise scale ν", caption, rows.drop(columns="common"), chart)


def further(m: Material) -> Iterator[Figure]:
    """A figure for each other numeric key that a curve of runs differs in: the layer, alpha, steps, ..."""
    for key in [key for key in varying(m) if not key.startswith("method.")]:
        rows = against(m, key)
        if rows.empty:
            continue
        curves = list(dict.fromkeys(rows["curve"]))
        shown = rows[rows["curve"].isin(curves[:MOST])]

        def chart(look: Look, shown: pd.DataFrame = shown, key: str = key) -> alt.ConcatChart:
            return charts.side_by_side(
                *(
                    panel(part, look, title=f"{curve}, {role}", axis=key)
                    for (role, curve), part in shown.groupby(["role", "curve"], sort=False)
                )
            )

        name = "against_" + re.sub(r"[^A-Za-z0-9]+", "_", key)
        caption = f"{INTERVALS}{_told(rows, len(curves))}"
        yield Figure(name, f"Accuracy against {key}", caption, rows.drop(columns="common"), chart)


def _told(rows: pd.DataFrame, curves: int) -> str:
    """Further sentences of a caption."""
    hollow = " Hollow points lack seeds: see Results by setting." if (rows["missing"] != "").any() else ""
    rest = f" {MOST} of {curves} curves are drawn; the data has all." if curves > MOST else ""
    return hollow + rest


def panel(
    part: pd.DataFrame, look: Look, *, title: str, axis: str, log: bool = False, scaled_to: pd.DataFrame | None = None
) -> alt.LayerChart | alt.FacetChart:
    """Accuracy against `x` of one role: a stroke for each kind of query.

    The scales span `scaled_to`, which panels side by side have in common (default: `part`).
    """
    spanned = part if scaled_to is None else scaled_to
    values = sorted(set(spanned["x"]))
    scale = alt.Scale(zero=False, nice=False, padding=8)
    if log:
        scale = alt.Scale(type="log", nice=False, domain=[values[0] / MARGIN, values[-1] * MARGIN])
    ticks = alt.Axis(format=".4~g", values=values, grid=False, labelOverlap="greedy")
    return charts.curves(
        part.drop(columns="common"),
        look,
        x=alt.X("x:Q", title=axis, scale=scale, axis=ticks),
        y=alt.Y("mean:Q", title="accuracy in %", scale=charts.percent(spanned)),
        colour="role",
        scale=charts.colours(list(charts.ROLE_COLOURS), charts.ROLE_COLOURS),
        legend=None,
        dash=_query_dash(),
        title=title,
    )


def _query_dash() -> alt.StrokeDash:
    return alt.StrokeDash("query:N", title=None, scale=charts.dashes(["perturbed", "default"]))


def _without_rna(plain: pd.DataFrame) -> list[alt.Chart]:
    """Horizontal lines at the accuracies of the same models without RNA."""
    rows = plain[["role", "query", "mean", "low", "high", "method", "seeds"]]
    if rows.empty:
        return []
    colour = alt.Color("role:N", scale=charts.colours(list(charts.ROLE_COLOURS), charts.ROLE_COLOURS), legend=None)
    line = alt.Chart(rows).mark_rule(opacity=0.6, size=1)
    return [line.encode(y="mean:Q", color=colour, strokeDash=_query_dash(), tooltip=charts.tooltip(rows))]
