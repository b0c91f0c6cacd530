"""The look of charts. One Altair chart is interactive on the page, and is written as PDF and PNG for a paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import pandas as pd

# Okabe and Ito's colours, told apart by colour-blind readers, on white and on black.
BASE, OTHERS = "#8c8c8c", ["#CC79A7", "#56B4E9", "#E69F00", "#7F5AA2", "#A6761D"]
METHOD_COLOURS = {
    "Base": BASE,
    "RMU": "#0072B2",
    "Adaptive RMU": "#D55E00",
    "RSV": "#009E73",
    "NPO": "#CC79A7",
    "SimNPO": "#E69F00",
    "DPO": "#56B4E9",
    "GradDiff": "#8C564B",
}
ROLE_COLOURS = {"retain": "#0072B2", "near": "#009E73", "forget": "#D55E00"}
QUERY_DASHES = {"perturbed": [1, 0], "default": [5, 3], "control": [1, 2]}
NOISE = {True: "with RNA", False: "without"}
USUAL_NOISE = ("without", "with RNA")
UNKNOWN = "RNA unknown"  # of an adopted checkpoint
NOISE_DASHES = {"without": [1, 0], "with RNA": [5, 3], UNKNOWN: [2, 2]}
NOISE_SHAPES = {"without": "circle", "with RNA": "diamond", UNKNOWN: "triangle"}


@dataclass(frozen=True)
class Look:
    """Size of a panel in pixels (screen) or points (paper), fonts and the colour of whatever is not data."""

    width: int
    height: int
    font: str
    size: int
    ink: str
    paper: str

    def config(self) -> dict[str, Any]:
        """Vega-Lite's configuration."""
        text = {"labelColor": self.ink, "titleColor": self.ink, "labelFontSize": self.size, "titleFontSize": self.size}
        axis = {"domainColor": self.ink, "tickColor": self.ink, "gridColor": self.ink, "gridOpacity": 0.12}
        return {
            "background": self.paper,
            "font": self.font,
            "view": {"stroke": None},
            "axis": {**text, **axis, "titleFontWeight": "normal"},
            "axisY": {"minExtent": 3 * self.size},  # so that panels have one width
            "legend": {
                **text,
                "orient": "bottom",
                "columns": 4,
                "labelLimit": 260,
                "symbolOpacity": 1,
                "symbolBaseFillColor": self.ink,
                "symbolBaseStrokeColor": self.ink,
            },
            "title": {"color": self.ink, "fontSize": self.size + 1, "fontWeight": "bold", "anchor": "start"},
            "line": {"strokeWidth": self.size / 6},
            "text": {"color": self.ink, "fontSize": self.size},
        }


SCREEN = Look(265, 210, "system-ui, sans-serif", 12, "currentColor", "transparent")
PAPER = Look(155, 115, "Liberation Serif, Times New Roman, serif", 8, "black", "white")


def colours(names: Sequence[str], known: dict[str, str]) -> alt.Scale:
    """A colour for each name: those that are known, and others in turn."""
    spare = iter(OTHERS * (1 + len(names) // len(OTHERS)))
    return alt.Scale(domain=list(names), range=[known.get(name) or next(spare) for name in names])


def method_colour(methods: Sequence[str]) -> alt.Color:
    """The colours of methods."""
    return alt.Color("method:N", title=None, scale=colours(methods, METHOD_COLOURS))


def noise(nu: pd.Series) -> pd.Series:
    """Whether each model has RNA, in words, from its nu."""
    return nu.gt(0).map(NOISE).where(nu.notna(), UNKNOWN)


def kinds_of_noise(data: pd.DataFrame) -> list[str]:
    """What the column `rna` of a figure may say: with RNA or without, and unknown where a row says so."""
    return [kind for kind in NOISE_SHAPES if kind != UNKNOWN or (data["rna"] == UNKNOWN).any()]


def noise_dash(kinds: Sequence[str] = USUAL_NOISE) -> alt.StrokeDash:
    """A stroke for models with RNA and one for those without."""
    scale = alt.Scale(domain=list(kinds), range=[NOISE_DASHES[kind] for kind in kinds])
    return alt.StrokeDash("rna:N", title=None, scale=scale)


def noise_shape(kinds: Sequence[str] = USUAL_NOISE) -> alt.Shape:
    """A point for models with RNA and one for those without."""
    scale = alt.Scale(domain=list(kinds), range=[NOISE_SHAPES[kind] for kind in kinds])
    return alt.Shape("rna:N", title=None, scale=scale)


def dashes(queries: Sequence[str]) -> alt.Scale:
    """A stroke for each kind of query."""
    return alt.Scale(domain=list(queries), range=[QUERY_DASHES.get(q, [3, 2, 1, 2]) for q in queries])


def percent(data: pd.DataFrame) -> alt.Scale:
    """All means with room for a usual interval; wider ones run off the panel."""
    return span(data["mean"], 2 + float((data["high"] - data["low"]).median()))


def span(values: pd.Series, margin: float) -> alt.Scale:
    """From the least value to the largest, with a margin, within 0 and 100 %."""
    low, high = max(0.0, float(values.min()) - margin), min(100.0, float(values.max()) + margin)
    return alt.Scale(domain=[round(low, 1), round(high, 1)], nice=False, zero=False)


def tooltip(data: pd.DataFrame) -> list[alt.Tooltip]:
    """Everything that the row says, in its order."""
    return [
        alt.Tooltip(f"{name}:{'Q' if number else 'N'}", format=".4~g" if number else "")
        for name in data.columns
        for number in [pd.api.types.is_numeric_dtype(data[name])]
    ]


def curves(
    data: pd.DataFrame,
    look: Look,
    *,
    x: alt.X,
    y: alt.Y,
    colour: str,
    scale: alt.Scale,
    dash: alt.StrokeDash,
    title: str,
    legend: Any = alt.Undefined,
) -> alt.LayerChart | alt.FacetChart:
    """Lines with points over error bars, from `mean`, `low` and `high`; hollow where `missing` says something."""
    named: dict[str, Any] = {"title": None, "scale": scale}
    common: dict[str, Any] = {"x": x, "color": alt.Color(f"{colour}:N", legend=legend, **named)}
    chart = alt.Chart(data)
    ends = {"y": alt.Y("low:Q", scale=y["scale"], title=y["title"]), "y2": "high:Q"}
    bars = chart.mark_rule(opacity=0.45, clip=True).encode(**common, **ends)
    line = chart.mark_line(clip=True).encode(**common, y=y, strokeDash=dash)
    points = chart.mark_point(filled=False, size=2.4 * look.size, opacity=1, strokeWidth=look.size / 10).encode(
        **common,
        y=y,
        fill=alt.Fill(f"{colour}:N", legend=None, **named),
        fillOpacity=alt.condition("datum.missing != ''", alt.value(0), alt.value(1)),
        tooltip=tooltip(data),
    )
    return alt.layer(bars, line, points).properties(width=look.width, height=look.height, title=title)


def bars(
    data: pd.DataFrame, look: Look, *, groups: Sequence[str], kinds: Sequence[str], y: alt.Y, title: str
) -> alt.LayerChart | alt.FacetChart:
    """Bars of `kind` beside each other for each `group`, with error bars."""
    x = alt.X("group:N", sort=list(groups), title=None, axis=alt.Axis(labelAngle=-25, ticks=False))
    offset = alt.XOffset("kind:N", sort=list(kinds))
    palette = ["#56B4E9", "#0072B2", "#F0B060", "#D55E00"]
    scale = alt.Scale(domain=list(kinds), range=palette[: len(kinds)])
    colour = alt.Color("kind:N", title=None, legend=alt.Legend(columns=2), scale=scale)
    chart = alt.Chart(data)
    drawn = chart.mark_bar(clip=True).encode(x=x, xOffset=offset, y=y, color=colour, tooltip=tooltip(data))
    errors = chart.mark_rule(color=look.ink).encode(
        x=x, xOffset=offset, y=alt.Y("low:Q", title=y["title"]), y2="high:Q"
    )
    return alt.layer(drawn, errors).properties(width=look.width, height=look.height, title=title)


def side_by_side(*charts: alt.Chart | alt.LayerChart | alt.FacetChart, columns: int = 3) -> alt.ConcatChart:
    """Panels, as many in a row as there is room for: the page sets `columns` to 1 on a phone."""
    return alt.concat(*charts, columns=columns).resolve_scale(color="shared", strokeDash="shared", shape="shared")
