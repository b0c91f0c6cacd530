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
        "far that keeps the bounds. Importance, by Optuna: a key's share in what makes the best tenth of the trials. "
        "The last panel has a line for each trial, from its values to its figures, each axis from its least to its "
        f"largest value. These figures chose the front: other seeds and texts must judge it. {search.lacks}"
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
        "x": alt.X(f"{x}:Q", title=_title(x), scale=alt.Scale(zero=False, nice=True)),
        "y": alt.Y(f"{y}:Q", title=_title(y), scale=alt.Scale(zero=False, nice=True)),
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
    points = alt.Chart(data).mark_point(filled=True, size=5 * look.size).encode(**encoding)
    yield _sized(alt.layer(line, points), look, "The front")


def _history(search: FoundSearch, data: pd.DataFrame, look: Look) -> Iterator[alt.LayerChart]:
    """Each objective by trial, and the best so far."""
    so_far = best_so_far(search.trials, search.objectives)
    best = pd.DataFrame({"trial": row.number, **of} for row, of in zip(search.trials, so_far, strict=True))
    for name in search.objectives:
        x = alt.X("trial:Q", title="trial", axis=alt.Axis(tickMinStep=1, format="d"))
        y = alt.Y(f"{name}:Q", title=_title(name), scale=alt.Scale(zero=False))
        points = (
            alt.Chart(data)
            .mark_point(filled=True, size=3 * look.size, opacity=0.9)
            .encode(x=x, y=y, color=KIND, tooltip=_tooltip(data))
        )
        known = best.reindex(columns=["trial", name]).dropna()
        line = alt.Chart(known).mark_line(interpolate="step-after", color=charts.BASE).encode(x=x, y=y)
        yield _sized(alt.layer(line, points), look, f"Course of {name}")


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
