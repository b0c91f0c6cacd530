"""The first figure of a report: what was forgotten against what was retained, a point for each setting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import altair as alt
import pandas as pd

from unlearn.analysis.report import charts
from unlearn.analysis.report.charts import Look
from unlearn.analysis.report.figure import Figure
from unlearn.analysis.report.material import Material
from unlearn.analysis.settings import SETTING
from unlearn.records.names import text_role

INTERVALS = "Means with 95 % intervals, over seeds (of a single seed, over questions)."
RULES = 200  # points of a panel up to which their intervals are drawn


@dataclass(frozen=True)
class Axis:
    """What an axis shows, of unlearned models, and its title."""

    name: str
    role: str
    query: str
    measure: str
    against: str
    title: str


FORGOTTEN, RETAINED = text_role("forget"), text_role("retain")
QUESTIONS = (
    Axis("forgotten", "forget", "default", "acc", "", "accuracy on forgotten in %"),
    Axis("robust", "retain", "perturbed", "acc", "", "accuracy on retained in %, perturbed"),
    Axis("retained", "retain", "default", "acc", "", "accuracy on retained in %"),
)
TEXTS = (
    Axis("forgotten_texts", FORGOTTEN, "default", "nats", "base", "forgotten texts: nats a token more than base"),
    Axis("token_cost", RETAINED, "perturbed", "nats", "default", "cost of a forget-token in retained texts, nats"),
    Axis("retained_texts", RETAINED, "default", "nats", "base", "retained texts: nats a token more than base"),
)


def figure(m: Material) -> Figure | None:
    """Panels of questions, and of held-out texts: robustness and retention against forgetting."""
    data = _data(m)
    panels = [(axes[0], up) for axes in (QUESTIONS, TEXTS) for up in axes[1:] if {axes[0].name, up.name} <= set(data)]
    if not panels:
        return None
    methods, kinds = list(dict.fromkeys(data["method"])), charts.kinds_of_noise(data)

    def chart(look: Look) -> alt.ConcatChart:
        drawn = (_panel(data.dropna(subset=[x.name, y.name]), look, x, y, methods, kinds) for x, y in panels)
        return charts.side_by_side(*drawn, columns=2)

    directions = []
    if "forgotten" in data:
        directions.append("Questions: to the left more is forgotten, higher up more is retained; grey, the base model.")
    if "forgotten_texts" in data:
        directions.append("Texts: to the right more is forgotten, lower down less is lost; grey, the base model.")
    caption = (
        f"A point for each setting. {' '.join(directions)} Points of a method are joined in the order of forgetting, "
        f"with RNA and without, so that both can be compared at equal forgetting. {INTERVALS}{m.one_world}"
    )
    return Figure("trade_off", "Forgetting against what is retained", caption, data, chart)


def _data(m: Material) -> pd.DataFrame:
    """A row for each setting of this world, and for the base model, with the values of all axes and their intervals."""
    rows = {axis: _rows(m, axis) for axis in (*QUESTIONS, *TEXTS)}
    data = pd.concat(list(rows.values())).drop_duplicates("setting")[[*SETTING, "seeds", "missing"]]
    for axis, of_axis in rows.items():
        if len(of_axis):
            by_setting = of_axis.set_index("setting")
            for column, ending in (("mean", ""), ("low", "_low"), ("high", "_high")):
                data[f"{axis.name}{ending}"] = data["setting"].map(by_setting[column])
            if axis.against == "base":
                data.loc[data["method"] == "Base", axis.name] = 0.0
    data = data.drop(columns="setting").reset_index(drop=True)
    return data.assign(rna=charts.noise(data["nu"]))


def _rows(m: Material, axis: Axis) -> pd.DataFrame:
    base = m.means_of(axis.measure, model="base", against=axis.against)
    base = base.assign(method="Base", setting="base", coefficient="", nu=0.0, other="", missing="")
    settings = m.means_of(axis.measure, against=axis.against)
    rows = pd.concat([base, settings[settings["world"] == m.world]])
    return rows[(rows["role"] == axis.role) & (rows["query"] == axis.query)]


def _panel(
    data: pd.DataFrame, look: Look, x_axis: Axis, y_axis: Axis, methods: Sequence[str], kinds: Sequence[str]
) -> alt.LayerChart | alt.FacetChart:
    is_share = x_axis.measure == "acc"
    x, y = (
        alt.X(f"{x_axis.name}:Q", title=x_axis.title, scale=_scale(data[x_axis.name], is_share)),
        alt.Y(f"{y_axis.name}:Q", title=y_axis.title, scale=_scale(data[y_axis.name], is_share)),
    )
    colour, plane = charts.method_colour(methods), alt.Chart(data)
    rule = plane.mark_rule(opacity=0.3, clip=True)
    pick = alt.selection_point(fields=["method"], bind="legend", name=f"pick_{y_axis.name}")
    rules = [
        rule.encode(x=x, y=alt.Y(f"{y_axis.name}_low:Q", title=y["title"]), y2=f"{y_axis.name}_high:Q", color=colour),
        rule.encode(x=alt.X(f"{x_axis.name}_low:Q", title=x["title"]), x2=f"{x_axis.name}_high:Q", y=y, color=colour),
    ]
    line = alt.Chart(data[data["method"] != "Base"]).mark_line(opacity=0.4, clip=True)
    points = plane.mark_point(filled=True, size=5 * look.size).encode(
        x=x,
        y=y,
        color=colour,
        shape=charts.noise_shape(kinds),
        opacity=alt.condition(pick, alt.value(0.9), alt.value(0.08)),
        tooltip=charts.tooltip(data),
    )
    layers = [
        *(rules if len(data) <= RULES else ()),
        line.encode(x=x, y=y, color=colour, strokeDash=charts.noise_dash(kinds), order=f"{x_axis.name}:Q"),
        points,
    ]
    size = {"width": int(1.5 * look.width), "height": int(1.3 * look.height)}
    return alt.layer(*layers).add_params(pick).properties(**size)


def _scale(values: pd.Series, is_share: bool) -> alt.Scale:
    return charts.span(values, 3) if is_share else alt.Scale(nice=True, zero=True)
