"""Curves over a key of the configuration, over training steps, and densities of MaxLogit."""

from __future__ import annotations

import json
from collections.abc import Iterator

import altair as alt
import numpy as np
import pandas as pd

from unlearn.report import charts
from unlearn.report.charts import Look
from unlearn.report.choose import without
from unlearn.report.figure import Figure
from unlearn.report.material import Material
from unlearn.report.phases import MARGIN
from unlearn.run_folder import ROLES

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


def against(m: Material, key: str) -> pd.DataFrame:
    """Rows of `m.unlearned` with `x`, a numeric key's value, and `series`: settings that differ in nothing but it.

    Only series of at least two values.
    """
    rows = m.unlearned
    column = "nu" if key == "rna.nu" else key
    if rows.empty or column not in m.about:
        return pd.DataFrame()
    values = m.about.drop_duplicates("setting").set_index("setting")[column]
    rows = rows.assign(x=rows["setting"].map(values))
    rows = rows[rows["x"].notna()].assign(series=lambda d: [without(s, key) for s in d["setting"]])
    rows = rows[rows.groupby("series")["x"].transform("nunique") > 1]
    numbers = {series: f"#{number}" for number, series in enumerate(rows["series"].unique())}
    rows = rows.assign(series=rows["series"].map(numbers)).drop(columns=["setting", "model", "task"])
    return rows.sort_values(["series", "x"]).reset_index(drop=True)


def panel(
    part: pd.DataFrame,
    look: Look,
    *,
    title: str,
    axis: str,
    log: bool = False,
    scaled_to: pd.DataFrame | None = None,
) -> alt.LayerChart:
    """Accuracy against `x`: a colour for each role, a stroke for each kind of query, a line for each series.

    The scales span `scaled_to`, which panels side by side have in common (default: `part`).
    """
    spanned = part if scaled_to is None else scaled_to
    values = sorted(set(spanned["x"]))
    scale = alt.Scale(zero=False, nice=False, padding=8)
    if log:
        scale = alt.Scale(type="log", nice=False, domain=[values[0] / MARGIN, values[-1] * MARGIN])
    ticks = alt.Axis(format="~g", values=values, grid=False, labelOverlap="greedy")
    return charts.curves(
        part,
        look,
        x=alt.X("x:Q", title=axis, scale=scale, axis=ticks),
        y=alt.Y("mean:Q", title="accuracy in %", scale=charts.percent(spanned)),
        colour=_role_colour(),
        dash=_query_dash(),
        detail=["series"],
        title=title,
    )


def _role_colour() -> alt.Color:
    return alt.Color(
        "role:N", title=None, scale=charts.colours(list(charts.ROLE_COLOURS), charts.ROLE_COLOURS), legend=None
    )


def _query_dash() -> alt.StrokeDash:
    return alt.StrokeDash("query:N", title=None, scale=charts.dashes(["perturbed", "default"]))


def without_rna(plain: pd.DataFrame) -> list[alt.Chart]:
    """Horizontal lines at the accuracies of the same models without RNA."""
    rows = plain[["role", "query", "mean", "low", "high", "method", "seeds"]]
    return [charts.references(rows, y="mean", colour=_role_colour(), dash=_query_dash())] if len(rows) else []


def phase_bands(bands: pd.DataFrame, look: Look) -> list[alt.Chart]:
    """Shading and names of the phases, behind the curves."""
    if bands.empty:
        return []
    chart = alt.Chart(bands.assign(middle=np.sqrt(bands["begin"] * bands["end"])))
    scale = alt.Scale(domain=list(charts.PHASE_COLOURS), range=list(charts.PHASE_COLOURS.values()))
    colour = alt.Fill("phase:N", legend=None, scale=scale)
    shade = chart.mark_rect(opacity=0.1).encode(x=alt.X("begin:Q", title="ν"), x2="end:Q", fill=colour)
    name = chart.mark_text(baseline="bottom", dy=-3, fontSize=look.size, color=look.ink)
    return [shade, name.encode(x="middle:Q", y=alt.value(look.height), text="phase:N")]


def published_rule(nu: float | None, look: Look) -> list[alt.Chart]:
    """A vertical line at the nu that the paper found best for a method."""
    if nu is None:
        return []
    data = pd.DataFrame([{"nu": nu, "published": f"best ν of the paper (published): {nu:g}"}])
    rule = alt.Chart(data).mark_rule(strokeDash=[1, 3], size=2, color=look.ink)
    return [rule.encode(x="nu:Q", tooltip=["published:N"])]


def further(m: Material) -> Iterator[Figure]:
    """A figure for each other numeric key that a series of runs differs in: the layer, alpha, steps, ..."""
    numeric = [c for c in m.about.columns if "." in c and pd.api.types.is_numeric_dtype(m.about[c])]
    for key in numeric:
        if key.startswith("method."):
            continue
        rows = against(m, key)
        if rows.empty:
            continue
        rows = rows[rows["role"].isin(["retain", "forget"]) & rows["query"].isin(["default", "perturbed"])]
        rows["panel"] = rows["method"] + rows["nu"].gt(0).map({True: " + RNA", False: ""}) + ", " + rows["role"]
        yield Figure(
            f"against_{key.replace('.', '_')}",
            f"Accuracy against {key}",
            "Means over seeds with 95 % intervals.",
            rows,
            lambda look, rows=rows, key=key: charts.side_by_side(  # type: ignore[misc]
                *(panel(part, look, title=name, axis=key) for name, part in rows.groupby("panel", sort=False))
            ),
        )


def maxlogits(m: Material) -> pd.DataFrame:
    """Densities of MaxLogit under perturbation, of base model and chosen settings: series, maxlogit, density."""
    values: dict[str, list[np.ndarray]] = {}
    for setting, label in m.labels.items():
        for run in m.runs_of(setting):
            roles_file = run.folder / "samples" / ROLES
            tasks = json.loads(roles_file.read_text()).get("retain", []) if roles_file.is_file() else []
            for model, name in (("unlearned", label), ("base", "Base")):
                if name == "Base" and name in values and setting != next(iter(m.labels)):
                    continue
                files = [run.folder / "samples" / model / task / "perturbed.maxlogit.parquet" for task in tasks]
                found = [pd.read_parquet(f, columns=["maxlogit"])["maxlogit"].to_numpy() for f in files if f.is_file()]
                values.setdefault(name, []).extend(found)
    known = {name: np.concatenate(found) for name, found in values.items() if found}
    if not known:
        return pd.DataFrame()
    low, high = (float(f(np.concatenate(list(known.values())))) for f in (np.min, np.max))
    edges = np.linspace(low, high, BINS + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    order = sorted(known, key=lambda name: name != "Base")
    return pd.concat(
        pd.DataFrame(
            {"series": name, "maxlogit": middles, "density": np.histogram(known[name], edges, density=True)[0]}
        )
        for name in order
    )


def density(rows: pd.DataFrame, look: Look) -> alt.LayerChart:
    """Densities, a line each; RNA models are dashed in their method's colour."""
    names = list(dict.fromkeys(rows["series"]))
    methods = charts.colours([name.removesuffix(" + RNA") for name in names], charts.METHOD_COLOURS)
    strokes = [[4, 3] if name.endswith(" + RNA") else [1, 0] for name in names]
    scale, dash = alt.Scale(domain=names, range=methods["range"]), alt.Scale(domain=names, range=strokes)
    legend = alt.Legend(columns=2, title=None)
    line = alt.Chart(rows).mark_line(interpolate="monotone")
    return alt.layer(
        line.encode(
            x=alt.X("maxlogit:Q", title="MaxLogit"),
            y=alt.Y("density:Q", title="density", axis=alt.Axis(tickCount=4)),
            color=alt.Color("series:N", scale=scale, legend=legend),
            strokeDash=alt.StrokeDash("series:N", scale=dash, legend=legend),
            tooltip=["series:N", alt.Tooltip("maxlogit:Q", format=".2f"), alt.Tooltip("density:Q", format=".3f")],
        )
    ).properties(width=look.width, height=look.height, title="retain: MaxLogit, perturbed")


def training(m: Material) -> Figure:
    """Losses, norms, cosine and drift over steps, of the chosen settings."""
    title = "Training"
    rows = pd.concat([pd.DataFrame(), *_training_rows(m)], ignore_index=True)
    if rows.empty:
        return Figure("training", title, "Nothing to show: no finished run was trained.", rows)
    names = list(dict.fromkeys(rows["method"]))

    def chart(look: Look) -> alt.ConcatChart:
        colour = alt.Color("method:N", title=None, scale=charts.colours(names, charts.METHOD_COLOURS))
        dash = alt.StrokeDash(
            "rna:N", title=None, scale=alt.Scale(domain=["without", "with RNA"], range=[[1, 0], [4, 3]])
        )
        panels = []
        for name, part in rows.groupby("quantity", sort=False):
            scale = alt.Scale(type="log") if (part["mean"] > 0).all() and "loss" in str(name) else alt.Scale(zero=False)
            line = (
                alt.Chart(part)
                .mark_line()
                .encode(
                    x=alt.X("step:Q", title="step"),
                    y=alt.Y("mean:Q", title=None, scale=scale, axis=alt.Axis(tickCount=5, format="~g")),
                    color=colour,
                    strokeDash=dash,
                    detail="series:N",
                    tooltip=["series:N", "step:Q", alt.Tooltip("mean:Q", format=".4~g")],
                )
            )
            panels.append(line.properties(width=look.width, height=int(0.8 * look.height), title=str(name)))
        return charts.side_by_side(*panels)

    told = f"Mean over seeds and topics, in {PARTS} parts of the training. {m.choice}"
    return Figure("training", title, told, rows, chart)


def _training_rows(m: Material) -> Iterator[pd.DataFrame]:
    """Binned means of train.jsonl for each chosen setting: quantity, series, method, rna, step, mean."""
    for setting, label in m.labels.items():
        files = [run.folder / "train.jsonl" for run in m.runs_of(setting)]
        logs = [pd.read_json(file, lines=True) for file in files if file.is_file()]
        if not logs:
            continue
        log = pd.concat(logs)
        width = max(1, -(-(int(log["step"].max()) + 1) // PARTS))
        known = [column for column in TRAINING if column in log]
        means = log.groupby(log["step"] // width * width)[known].mean()
        rows = means.rename(columns=TRAINING).reset_index().melt("step", var_name="quantity", value_name="mean")
        method, _, rna = label.partition(" + ")
        yield rows.assign(series=label, method=method, rna="with RNA" if rna else "without")
