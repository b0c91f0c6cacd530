"""What a search found (docs/search.md): its front, its course, which keys matter, and its points."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from unlearn.analysis.report import charts
from unlearn.analysis.report.charts import Look
from unlearn.analysis.report.figure import Figure
from unlearn.analysis.report.material import Material
from unlearn.analysis.searches import FoundSearch
from unlearn.sweeps.search.figures import FIGURES
from unlearn.sweeps.search.trials import best_so_far

KINDS = ("on the front", "keeps the bounds", "breaks a bound")  # of complete trials
KIND = alt.Color("kind:N", title=None, scale=alt.Scale(domain=KINDS, range=["#D55E00", "#0072B2", "#b0b0b0"]))
ENDS = 0.06  # where an axis of the parallel plot says its ends, in its height


def figures(m: Material) -> Iterator[Figure]:
    """A figure for each search that can be read."""
    readable = [search for search in m.searches if not search.problem]
    for place, search in enumerate(readable, start=1):
        yield _figure(search, "search" if len(readable) == 1 else f"search_{place}")


def _figure(search: FoundSearch, name: str) -> Figure:
    data = trials(search)

    def chart(look: Look) -> alt.VConcatChart:
        panels: list[Any] = [*_front(search, data, look), *_history(search, data, look), *_importance(search, look)]
        return alt.vconcat(
            alt.concat(*panels, columns=2).resolve_scale(color="independent", shape="independent"),
            _parallel(search, data, look),
        ).resolve_scale(color="independent")

    sides = {"min": "most", "max": "least"}
    judged = [f"{key} ({direction})" for key, direction in search.objectives.items()]
    judged += [f"{key} at {sides[FIGURES[key].good]} {value:g}" for key, value in search.bounds.items()]
    caption = (
        f"{len(search.complete)} complete of {len(search.trials)} trials, by {', '.join(judged)}. On the front: no "
        "other trial that keeps the bounds is better in every objective. The line of the course is the best trial so "
        "far that keeps the bounds; a cross is a trial without figures. Importance, by Optuna: a key's share in what "
        "makes the best tenth of the trials. The last panel has a line for each trial, from its values to its "
        "figures, each axis from its least to its largest value. These figures chose the front: other seeds and texts "
        "must judge it. " + search.lacks + _outside(search, data)
    )
    return Figure(name, f"Search · {search.folder.name}", caption.strip(), data, chart)


def trials(search: FoundSearch) -> pd.DataFrame:
    """A row for each complete trial: trial, kind, the keys of the space, the figures, rna, runs."""
    rows = []
    for trial in search.complete:
        kind = KINDS[0] if trial.on_front else KINDS[1] if trial.keeps_bounds else KINDS[2]
        nu = trial.point.get("rna.nu")
        noise = {} if nu is None else {"rna": charts.NOISE[float(nu) > 0]}
        about = {"trial": trial.number, "kind": kind, **noise, "runs": ", ".join(trial.runs)}
        rows.append({**about, **trial.point, **trial.figures})
    return pd.DataFrame(rows)


def _title(name: str) -> str:
    return f"{name}, {FIGURES[name].unit}"


def _tooltip(data: pd.DataFrame) -> list[alt.Tooltip]:
    """Everything of a trial. In a field's name, Vega-Lite would read a dot as a path."""
    kinds = {name: "Q" if pd.api.types.is_numeric_dtype(data[name]) else "N" for name in data}
    return [
        alt.Tooltip(f"{name}:{kind}".replace(".", "\\."), title=name, format=".4~g" if kind == "Q" else "")
        for name, kind in kinds.items()
    ]


def _front(search: FoundSearch, data: pd.DataFrame, look: Look) -> Iterator[alt.LayerChart]:
    """The first two objectives, or figures that are judged; the third one as colour."""
    if len(search.judged) < 2:
        return
    x, y, *others = search.judged
    encoding: dict[str, Any] = {
        "x": alt.X(f"{x}:Q", title=_title(x), scale=_scale(data, x)),
        "y": alt.Y(f"{y}:Q", title=_title(y), scale=_scale(data, y)),
        "opacity": alt.condition(f"datum.kind == '{KINDS[2]}'", alt.value(0.35), alt.value(1)),
        "tooltip": _tooltip(data),
    }
    if others:
        shade = alt.Scale(scheme="viridis", reverse=True)
        encoding["color"] = alt.Color(f"{others[0]}:Q", title=_title(others[0]), scale=shade)
    if "rna" in data:
        encoding["shape"] = charts.noise_shape()
    best = alt.Chart(data[data["kind"] == KINDS[0]])
    line = best.mark_line(color=charts.BASE).encode(x=encoding["x"], y=encoding["y"])
    points = alt.Chart(data).mark_point(filled=True, size=5 * look.size, clip=True).encode(**encoding)
    yield _sized(alt.layer(line, points), look, "The front")


def _scale(data: pd.DataFrame, name: str) -> alt.Scale:
    """As wide as the trials that keep the bounds, and once more on both sides: one that diverged would squash them."""
    kept, ends = data.loc[data["kind"] != KINDS[2], name], (float(data[name].min()), float(data[name].max()))
    width = 0.0 if kept.empty else float(kept.max() - kept.min())
    if width == 0:
        return alt.Scale(zero=False, nice=True)
    low, high = max(ends[0], kept.min() - width), min(ends[1], kept.max() + width)
    return alt.Scale(domain=[low, high], zero=False, nice=True)


def _outside(search: FoundSearch, data: pd.DataFrame) -> str:
    """How many trials lie outside of the axes, in a sentence; empty if none."""
    beyond = pd.Series(data=False, index=data.index)
    for name in search.judged[:2] + list(search.objectives):
        domain = _scale(data, name).to_dict().get("domain")
        if domain is not None:
            beyond |= ~data[name].between(*domain)
    return f" Trials that break a bound and lie outside of the axes: {beyond.sum()}." if beyond.any() else ""


def _history(search: FoundSearch, data: pd.DataFrame, look: Look) -> Iterator[alt.LayerChart]:
    """Each objective by trial, and the best so far; trials without figures as crosses at the bottom."""
    failed = pd.DataFrame(
        {"trial": row.number, "state": row.state, "error": row.error} for row in search.trials if not row.complete
    )
    so_far = best_so_far(search.trials, search.objectives)
    best = pd.DataFrame({"trial": row.number, **of} for row, of in zip(search.trials, so_far, strict=True))
    for name in search.objectives:
        x = alt.X("trial:Q", title="trial", axis=alt.Axis(tickMinStep=1, format="d"))
        y = alt.Y(f"{name}:Q", title=_title(name), scale=_scale(data, name))
        points = (
            alt.Chart(data)
            .mark_point(filled=True, size=3 * look.size, opacity=0.9, clip=True)
            .encode(x=x, y=y, color=KIND, tooltip=_tooltip(data))
        )
        known = best.reindex(columns=["trial", name]).dropna()
        line = alt.Chart(known).mark_line(interpolate="step-after", color=charts.BASE).encode(x=x, y=y)
        layers = [line, points]
        if not failed.empty:
            cross = alt.Chart(failed).mark_point(shape="cross", size=3 * look.size, color=charts.BASE)
            layers.append(cross.encode(x=x, y=alt.value(look.height), tooltip=charts.tooltip(failed)))
        yield _sized(alt.layer(*layers), look, f"Course of {name}")


def _importance(search: FoundSearch, look: Look) -> Iterator[alt.Chart]:
    """The share of each key, for each objective."""
    rows = [
        {"key": key, "objective": objective, "share": share}
        for objective, shares in search.importance.items()
        for key, share in shares.items()
    ]
    if rows:
        drawn = alt.Chart(pd.DataFrame(rows)).mark_bar()
        yield _sized(
            drawn.encode(
                y=alt.Y("key:N", title=None, sort="-x"),
                yOffset="objective:N",
                x=alt.X("share:Q", title="importance"),
                color=alt.Color("objective:N", title=None, scale=alt.Scale(range=["#0072B2", "#E69F00", "#009E73"])),
            ),
            look,
            "Importance of keys",
        )


def _parallel(search: FoundSearch, data: pd.DataFrame, look: Look) -> alt.LayerChart | alt.FacetChart:
    """A line for each trial over all keys and figures."""
    names = [*search.space, *search.judged]
    lines, ends = [], []
    for order, name in enumerate(names):
        places, low, high = _places(search, name, data[name])
        lines += [
            {"trial": trial, "kind": kind, "axis": name, "order": order, "place": place}
            for trial, kind, place in zip(data["trial"], data["kind"], places, strict=True)
        ]
        ends += [{"axis": name, "place": -ENDS, "text": low}, {"axis": name, "place": 1 + ENDS, "text": high}]
    x = alt.X("axis:N", title=None, sort=names, axis=alt.Axis(labelAngle=0, labelLimit=20 * look.size, domain=False))
    y = alt.Y("place:Q", title=None, axis=None, scale=alt.Scale(domain=[-2 * ENDS, 1 + 2 * ENDS]))
    drawn = (
        alt.Chart(pd.DataFrame(lines))
        .mark_line(strokeWidth=look.size / 9)
        .encode(
            x=x,
            y=y,
            detail="trial:N",
            color=KIND,
            opacity=alt.condition(f"datum.kind == '{KINDS[0]}'", alt.value(1), alt.value(0.35)),
            order="order:Q",
        )
    )
    texts = alt.Chart(pd.DataFrame(ends)).mark_text(color=look.ink).encode(x=x, y=y, text="text:N")
    return alt.layer(drawn, texts).properties(width=2.6 * look.width, height=look.height, title="All trials")


def _places(search: FoundSearch, name: str, values: pd.Series) -> tuple[Sequence[float], str, str]:
    """Where values lie between the ends of their axis, from 0 to 1, and its ends in words."""
    of: Any = search.space.get(name)
    if hasattr(of, "choices"):
        last = max(1, len(of.choices) - 1)
        return [list(of.choices).index(value) / last for value in values], str(of.choices[0]), str(of.choices[-1])
    numbers = values.astype(float)
    low, high = (float(numbers.min()), float(numbers.max())) if of is None else (float(of.low), float(of.high))
    if getattr(of, "log", False):
        scaled = (np.log(numbers) - np.log(low)) / (np.log(high) - np.log(low))
    else:
        scaled = (numbers - low) / ((high - low) or 1.0)
    return scaled.tolist(), f"{low:.3g}", f"{high:.3g}"


def _sized(chart: Any, look: Look, title: str) -> Any:
    return chart.properties(width=look.width, height=look.height, title=title)
