"""Curves over the steps of a training, from each run's own files, and densities of MaxLogit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import altair as alt
import numpy as np
import pandas as pd

from unlearn.analysis.collect import Run
from unlearn.analysis.report import charts
from unlearn.analysis.report.charts import Look
from unlearn.analysis.report.figure import Figure
from unlearn.analysis.report.material import Material
from unlearn.analysis.settings import SETTING
from unlearn.errors import UserError
from unlearn.records.names import text_role
from unlearn.records.scores import AGREEMENT

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
FORGOTTEN, RETAINED = text_role("forget"), text_role("retain")
COURSE = {
    f"{FORGOTTEN}/default/nats": "forgotten texts, nats a token",
    f"{RETAINED}/default/nats": "retained texts, nats a token",
    f"{FORGOTTEN}/default/{AGREEMENT}": "forgotten texts, agreement with the base model",
    f"{RETAINED}/perturbed/{AGREEMENT}": "retained texts with a forget-token, agreement with the base model",
    "robustness/text_cost": "cost of a forget-token, nats a token",
    "forget/default/acc": "forgotten questions, accuracy",
    "retain/perturbed/acc": "retained questions, perturbed, accuracy",
}  # names in course.jsonl, of which those are drawn that were measured
MOST_COURSES = 24  # runs whose course is drawn


def label(method: str, rna: bool) -> str:
    """The name of a chosen setting."""
    return f"{method} + RNA" if rna else method


def maxlogits(m: Material) -> pd.DataFrame:
    """Densities of MaxLogit under perturbation, of the base model and the chosen settings.

    Columns: series, method, rna, maxlogit, density. Values that are no numbers are left out.
    """
    values: dict[tuple[str, bool], np.ndarray] = {}
    for setting, (method, rna) in m.shown.items():
        runs = m.runs_of(setting).values()
        if ("Base", False) not in values:
            values["Base", False] = _maxlogits(m, list(runs)[:1], "base")
        values[method, rna] = _maxlogits(m, runs, "unlearned")
    values = {name: maxlogits for name, maxlogits in values.items() if len(maxlogits)}
    if not values:
        return pd.DataFrame()
    everything = np.concatenate(list(values.values()))
    edges = np.linspace(everything.min(), everything.max() + 1e-6, BINS + 1)
    middles = ((edges[1:] + edges[:-1]) / 2).round(4)
    return pd.concat(
        pd.DataFrame({"maxlogit": middles, "density": np.histogram(maxlogits, edges, density=True)[0].round(5)}).assign(
            series=label(method, rna), method=method, rna=rna
        )
        for (method, rna), maxlogits in values.items()
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


def training(m: Material) -> Figure | None:
    """Losses, norms, cosine and drift over steps, of the chosen settings."""
    rows = pd.concat([pd.DataFrame(), *_training_rows(m)], ignore_index=True)
    if rows.empty:
        return None

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

    told = f"Means over topics and seeds in {PARTS} parts of the training. Shaded: from the least seed to the largest. "
    return Figure("training", "Training", told + m.choice, rows, chart)


def _log_of(run: Run) -> Path:
    """The log of a run's training: its own, or that of the run whose training it took over."""
    file = run.folder / "train.jsonl"
    other = run.folder.parent / str(run.record.get("training_from")) / "train.jsonl"
    chosen = file if file.exists() or not other.is_file() else other
    if not chosen.is_file():
        raise UserError(f"{file}: there is no such file.")
    return chosen


def _training_rows(m: Material) -> Iterator[pd.DataFrame]:
    """Binned means of train.jsonl of each chosen setting: series, method, rna, quantity, step, mean, least, largest."""
    for setting, (method, rna) in m.shown.items():
        logs = []
        trained = {seed: run for seed, run in m.runs_of(setting).items() if not run.adopted}
        for seed, run in trained.items():
            with m.reading(run):
                log = pd.read_json(_log_of(run), lines=True)
                width = max(1, -(-(int(log["step"].max()) + 1) // PARTS))
                logged = [column for column in TRAINING if column in log]
                logs.append(log.groupby(log["step"] // width * width)[logged].mean().assign(seed=seed))
        if not logs:
            continue
        both = pd.concat(logs).rename(columns=TRAINING).reset_index()
        long = both.melt(["step", "seed"], var_name="quantity", value_name="value")
        means = long.groupby(["quantity", "step"], sort=False)["value"].agg(mean="mean", least="min", largest="max")
        shown = means.reset_index().assign(series=label(method, rna), method=method, rna=rna)
        digits = {name: shown[name].map(lambda value: float(f"{value:.5g}")) for name in ("mean", "least", "largest")}
        yield shown.assign(**digits)


def course(m: Material) -> Figure | None:
    """Forgetting, retention and robustness during training, a curve for each run with `eval.every`."""
    parts = []
    for number, run in enumerate(m.runs):
        file = run.folder / "course.jsonl"
        if run.done and file.is_file():
            with m.reading(run):
                about = m.about.set_index("number").loc[number, [*SETTING, "seed", "run"]].to_dict()
                parts.append(pd.read_json(file, lines=True).assign(**about))
    if not parts:
        return None
    data = pd.concat(parts, ignore_index=True)
    data = data.assign(rna=charts.noise(data["nu"])).drop(columns="setting")
    methods = list(dict.fromkeys(data["method"]))
    drawn = data[data["run"].isin(list(dict.fromkeys(data["run"]))[:MOST_COURSES])]

    def chart(look: Look) -> alt.ConcatChart:
        panels = []
        for name, label in COURSE.items():
            if name in drawn:
                # Altair reads a slash or a dot in a name as a path.
                part = drawn[["step", "method", "coefficient", "nu", "seed", "run", "rna"]].assign(value=drawn[name])
                y = alt.Y("value:Q", title=label, scale=alt.Scale(zero=False))
                encoded = alt.Chart(part.dropna(subset="value")).encode(
                    x=alt.X("step:Q", title="step"),
                    y=y,
                    color=charts.method_colour(methods),
                    strokeDash=charts.noise_dash(),
                    detail="run:N",
                )
                layers = [encoded.mark_line(opacity=0.7), encoded.mark_point(size=2 * look.size, filled=True)]
                layers[1] = layers[1].encode(tooltip=charts.tooltip(part))
                panels.append(alt.layer(*layers).properties(width=look.width, height=look.height))
        return charts.side_by_side(*panels)

    more = data["run"].nunique() - drawn["run"].nunique()
    left_out = f" {MOST_COURSES} of {more + MOST_COURSES} runs are drawn; the data has all." if more else ""
    caption = (
        f"A curve for each run, measured every eval.every steps on fewer texts and questions than its result.{left_out}"
    )
    return Figure("course", "The course of training", caption, data, chart)
