"""Data from each run's own files: densities of MaxLogit, and curves over training steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import altair as alt
import numpy as np
import pandas as pd

from unlearn.analysis.collect import Run
from unlearn.analysis.report import charts
from unlearn.analysis.report.charts import Look
from unlearn.analysis.report.figure import Figure
from unlearn.analysis.report.material import Material

TRAINING = {
    "forget_loss": "forget loss",
    "retain_loss": "retain loss",
    "forget_cosine": "cosine to the target",
    "forget_norm": "norm of forget states",
    "retain_drift": "drift of retain states",
    "gradient_norm": "gradient norm",
}
PARTS = 80  # of the training's steps
BINS = 40  # of MaxLogit


def label(method: str, rna: bool) -> str:
    """The name of a chosen setting."""
    return f"{method} + RNA" if rna else method


def maxlogits(m: Material) -> pd.DataFrame:
    """Densities of MaxLogit under perturbation, of the base model and the chosen settings.

    Columns: series, method, rna, maxlogit, density. Values that are no numbers are left out.
    """
    values: dict[tuple[str, bool], np.ndarray] = {}
    for setting, (method, rna) in m.standing.items():
        runs = m.runs_of(setting).values()
        if ("Base", False) not in values:
            values["Base", False] = _maxlogits(m, list(runs)[:1], "base")
        values[method, rna] = _maxlogits(m, runs, "unlearned")
    known = {name: found for name, found in values.items() if len(found)}
    if not known:
        return pd.DataFrame()
    everything = np.concatenate(list(known.values()))
    edges = np.linspace(everything.min(), everything.max() + 1e-6, BINS + 1)
    middles = ((edges[1:] + edges[:-1]) / 2).round(4)
    return pd.concat(
        pd.DataFrame({"maxlogit": middles, "density": np.histogram(found, edges, density=True)[0].round(5)}).assign(
            series=label(method, rna), method=method, rna=rna
        )
        for (method, rna), found in known.items()
    )


def _maxlogits(m: Material, runs: Iterable[Run], model: str) -> np.ndarray:
    values: list[float] = []
    for run in runs:
        with m.reading(run):
            for sample in run.samples():
                if (sample.model, sample.role, sample.query) == (model, "retain", "perturbed"):
                    values += sample.maxlogits or []
    finite = np.array(values)
    return finite[np.isfinite(finite)]


def _series(rows: pd.DataFrame) -> tuple[alt.Color, alt.StrokeDash]:
    """A colour for each method, dashed with RNA, in one legend."""
    first = rows.drop_duplicates("series")
    colours = charts.colours(list(first["method"]), charts.METHOD_COLOURS)["range"]
    strokes = [[4, 3] if rna else [1, 0] for rna in first["rna"]]
    names, legend = list(first["series"]), alt.Legend(columns=2, title=None, symbolType="stroke")
    return (
        alt.Color("series:N", scale=alt.Scale(domain=names, range=colours), legend=legend),
        alt.StrokeDash("series:N", scale=alt.Scale(domain=names, range=strokes), legend=legend),
    )


def density(rows: pd.DataFrame, look: Look) -> alt.LayerChart | alt.FacetChart:
    """Densities, a line each."""
    colour, dash = _series(rows)
    line = alt.Chart(rows).mark_line(interpolate="monotone")
    return alt.layer(
        line.encode(
            x=alt.X("maxlogit:Q", title="MaxLogit"),
            y=alt.Y("density:Q", title="density", axis=alt.Axis(tickCount=4)),
            color=colour,
            strokeDash=dash,
            tooltip=charts.tooltip(rows),
        )
    ).properties(width=look.width, height=look.height, title="retain: MaxLogit, perturbed")


def training(m: Material) -> Figure:
    """Losses, norms, cosine and drift over steps, of the chosen settings."""
    rows = pd.concat([pd.DataFrame(), *_training_rows(m)], ignore_index=True)
    if rows.empty:
        return Figure("training", "Training", "Nothing to show: no finished run has a train.jsonl.", rows)

    def chart(look: Look) -> alt.ConcatChart:
        colour, dash = _series(rows)
        panels = []
        for name, part in rows.groupby("quantity", sort=False):
            log = "loss" in name and (part["least"] > 0).all()
            scale = alt.Scale(type="log") if log else alt.Scale(zero=False)
            x = alt.X("step:Q", title="step")
            y = alt.Y("mean:Q", title=None, scale=scale, axis=alt.Axis(tickCount=5, format="~g"))
            plane, least = alt.Chart(part), alt.Y("least:Q", title=None, scale=scale)
            line = plane.mark_line().encode(x=x, y=y, color=colour, strokeDash=dash, tooltip=charts.tooltip(part))
            band = plane.mark_area(opacity=0.12).encode(x=x, y=least, y2="largest:Q", color=colour)
            panels.append(alt.layer(band, line).properties(width=look.width, height=int(0.8 * look.height), title=name))
        return charts.side_by_side(*panels)

    told = f"Means over topics and seeds in {PARTS} parts of the training; shaded, from the least seed to the largest. "
    return Figure("training", "Training", told + m.choice, rows, chart)


def _training_rows(m: Material) -> Iterator[pd.DataFrame]:
    """Binned means of train.jsonl of each chosen setting: series, method, rna, quantity, step, mean, least, largest."""
    for setting, (method, rna) in m.standing.items():
        logs = []
        for seed, run in m.runs_of(setting).items():
            with m.reading(run):
                log = pd.read_json(run.folder / "train.jsonl", lines=True)
                width = max(1, -(-(int(log["step"].max()) + 1) // PARTS))
                known = [column for column in TRAINING if column in log]
                logs.append(log.groupby(log["step"] // width * width)[known].mean().assign(seed=seed))
        if not logs:
            continue
        both = pd.concat(logs).rename(columns=TRAINING).reset_index()
        long = both.melt(["step", "seed"], var_name="quantity", value_name="value")
        means = long.groupby(["quantity", "step"], sort=False)["value"].agg(mean="mean", least="min", largest="max")
        shown = means.reset_index().assign(series=label(method, rna), method=method, rna=rna)
        digits = {name: shown[name].map(lambda value: float(f"{value:.5g}")) for name in ("mean", "least", "largest")}
        yield shown.assign(**digits)
