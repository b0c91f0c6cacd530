"""Held-out texts: what forgetting, retention and robustness are in nats a token, and each against the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import altair as alt
import numpy as np
import pandas as pd

from unlearn.analysis.report import charts
from unlearn.analysis.report.charts import Look
from unlearn.analysis.report.contrasts import mean_over_seeds
from unlearn.analysis.report.figure import Figure
from unlearn.analysis.report.frames import DIGITS, SETTING, without
from unlearn.analysis.report.material import Material
from unlearn.records.legacy import flat_role_means as role_means
from unlearn.records.names import NGRAM_QUERIES, text_role

FORGOTTEN, RETAINED = text_role("forget"), text_role("retain")
AXES = {
    "forgotten": "forgotten texts: nats a token more than the base model's",
    "cost": "cost of a forget-token in retained texts, nats a token",
    "retained": "retained texts: nats a token more than the base model's",
    "maxlogit": "MaxLogit after retained texts with a forget-token, more than the base model's",
}
# What moves a run along the curve of its setting, to more or less forgetting, and RNA.
STRENGTH = ("rna", "method.c", "method.beta", "loss.alpha", "train.steps", "train.lr")
WIDEST = 2.0  # nats a token between two runs, across which a measure is interpolated
MOST_COURSES = 24  # runs whose course is drawn


def measures(metrics: Mapping[str, float], roles: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """What a run's texts say, in nats a token, where it was measured.

    forgotten, retained: more than the base model's; cost, control: of an inserted forget-token or control word in
    retained texts; base_cost: that of a forget-token in the base model; QUERY: the cost of an n-gram, beyond the base
    model's. maxlogit, maxlogit_std: mean and standard deviation of MaxLogit after retained texts with a forget-token,
    more than the base model's.
    """
    change = role_means(metrics, roles, "unlearned", "base_difference")
    cost, base = (role_means(metrics, roles, model, "default_difference") for model in ("unlearned", "base"))
    found = {
        "forgotten": change.get((FORGOTTEN, "default")),
        "retained": change.get((RETAINED, "default")),
        "cost": cost.get((RETAINED, "perturbed")),
        "control": cost.get((RETAINED, "control")),
        "base_cost": base.get((RETAINED, "perturbed")),
    }
    grams = {
        query: cost[RETAINED, query] - base[RETAINED, query] for query in NGRAM_QUERIES if (RETAINED, query) in cost
    }
    for name, metric in (("maxlogit", "maxlogit_mean"), ("maxlogit_std", "maxlogit_std")):
        both = (role_means(metrics, roles, model, metric) for model in ("unlearned", "base"))
        own, base_value = (values.get((RETAINED, "perturbed")) for values in both)
        if own is not None and base_value is not None:
            found[name] = own - base_value
    return {name: value for name, value in found.items() if value is not None} | grams


def run_rows(m: Material) -> pd.DataFrame:
    """A row for each run of this world with held-out texts: SETTING, seed, `measures`.

    Of several runs of a setting's seed, the one with most measures.
    """
    about = m.about.set_index("number")
    rows = [
        {**about.loc[number, [*SETTING, "seed"]].to_dict(), **found}
        for number, run in enumerate(m.runs)
        if run.done and about.loc[number, "world"] == m.world and (found := measures(run.metrics, run.roles))
    ]
    if not rows:
        return pd.DataFrame()
    frame = pd.DataFrame(rows)
    fullest = frame.count(axis="columns").sort_values(ascending=False, kind="stable").index
    return frame.loc[fullest].drop_duplicates(["setting", "seed"]).sort_index()


def text_frame(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each setting: `measures`, means over seeds, with NAME_low and NAME_high where there are several."""
    names = [name for name in (*AXES, "control", "base_cost", *NGRAM_QUERIES) if name in rows]
    settings = [
        {**dict(zip(SETTING, key, strict=True)), "seeds": len(group), **_summary(group, names)}
        for key, group in rows.groupby(SETTING, sort=False, dropna=False)
    ]
    return pd.DataFrame(settings).round(DIGITS)


def at_equal_forgetting(rows: pd.DataFrame, measure: str) -> dict[int, float]:
    """For each seed of a method's runs: a measure with RNA less that without, at equal forgetting.

    Without RNA, the measure at other amounts of forgetting is interpolated between neighbouring runs that are at most
    WIDEST nats a token apart, and differ in nothing but STRENGTH. Runs with RNA that have forgotten less or more than
    all such are left out; the others are averaged. Seeds without any are left out.
    """
    found: dict[int, list[float]] = {}
    alike = rows["setting"].map(lambda setting: without(setting, *STRENGTH))
    for (seed, _), group in rows.groupby(["seed", alike]):
        plain = group[group["nu"] == 0].sort_values("forgotten")
        x, y = plain["forgotten"].to_numpy(), plain[measure].to_numpy()
        for forgotten, value in group.loc[group["nu"] > 0, ["forgotten", measure]].itertuples(index=False):
            above = int(x.searchsorted(forgotten))
            if 0 < above < len(x) and x[above] - x[above - 1] <= WIDEST:
                found.setdefault(int(seed), []).append(value - float(np.interp(forgotten, x, y)))
    return {seed: fmean(differences) for seed, differences in found.items()}


def _summary(group: pd.DataFrame, names: Sequence[str]) -> dict[str, float]:
    """Mean of each measure over seeds, and its 95 % interval (Student's t); no interval for a single seed."""
    found: dict[str, float] = {}
    for name in names:
        over = mean_over_seeds(list(group[name]))
        found |= {name: over.difference, f"{name}_low": over.seeds_low, f"{name}_high": over.seeds_high}
    return found


def figure(m: Material) -> Figure:
    """Robustness and retention against forgetting, on held-out texts, with and without RNA."""
    title = "Held-out texts · Robustness at equal forgetting"
    rows = run_rows(m)
    if rows.empty or not {"forgotten", "cost"} <= set(rows):
        why = "no run has held-out texts to forget and perturbed ones to retain (eval=real, eval.texts)."
        return Figure("texts", title, f"Nothing to show: {why}", pd.DataFrame())
    data = text_frame(rows).drop(columns="setting").sort_values(["method", "nu", "forgotten"])
    data = data.assign(rna=data["nu"].gt(0).map(charts.NOISE))
    methods = list(dict.fromkeys(data["method"]))
    shown = [name for name in ("cost", "retained", "maxlogit") if name in data]

    def chart(look: Look) -> alt.ConcatChart:
        panels = (_panel(data.dropna(subset=[name]), look, name, methods) for name in shown)
        return charts.side_by_side(*panels, columns=2)

    caption = (
        "A point for each setting: to the right it has forgotten more. Left, what one inserted forget-token costs in "
        "retained texts (grey: the base model); right, what unlearning costs there without one; then, where it was "
        "measured, how sure the model is of what it writes after such a text (MaxLogit, Eq. 11). Points of a method "
        "are joined in the order of forgetting, without RNA and with it, so that both can be compared at equal "
        "forgetting. "
        "Means with 95 % intervals over seeds, where there are several."
    )
    return Figure("texts", title, caption, data, chart)


def which_ngrams(m: Material) -> Figure:
    """What n-grams of the forget corpora cost in retained texts, by similarity to their document and by length."""
    title = "Held-out texts · Which n-grams are harmful?"
    rows = run_rows(m)
    asked = [query for query in NGRAM_QUERIES if query in rows]
    if not asked:
        why = "no run has held-out texts with n-grams (eval.texts and eval.queries)."
        return Figure("texts_ngrams", title, f"Nothing to show: {why}", pd.DataFrame())
    wide = text_frame(rows).dropna(subset=asked, how="all")
    data = pd.concat([_of_query(wide, query) for query in asked], ignore_index=True)
    methods = list(dict.fromkeys(data["method"]))

    def chart(look: Look) -> alt.ConcatChart:
        panels = []
        for kind, x in (("similarity", ["least", "mean", "most"]), ("length", ["2", "4", "8", "16"])):
            part = data[data["kind"] == kind]
            across = alt.X("gram:O", title=kind, sort=x, axis=alt.Axis(labelAngle=0))
            y = alt.Y("cost:Q", title="cost beyond the base model's, nats a token")
            named = alt.Chart(part).encode(
                x=across, y=y, color=charts.method_colour(methods), strokeDash=charts.noise_dash(), detail="curve:N"
            )
            layers = [named.mark_line(opacity=0.7), named.mark_point(filled=True).encode(tooltip=charts.tooltip(part))]
            panels.append(alt.layer(*layers).properties(width=look.width, height=look.height))
        return charts.side_by_side(*panels, columns=2)

    caption = (
        "An n-gram of the forget corpora is inserted into retained texts. A curve for each setting, means over seeds."
    )
    return Figure("texts_ngrams", title, caption, data, chart)


def _of_query(wide: pd.DataFrame, query: str) -> pd.DataFrame:
    """The rows of one kind of n-gram."""
    kind, _, gram = query.partition("-")
    rows = wide[["method", "coefficient", "nu", "other", "seeds"]].assign(cost=wide[query])
    curve = rows["coefficient"] + " " + rows["nu"].map("{:g}".format) + " " + rows["other"]
    return rows.assign(
        kind="length" if kind == "ngram" else kind, gram=gram, curve=curve, rna=rows["nu"].gt(0).map(charts.NOISE)
    )


COURSE = {
    f"{FORGOTTEN}/default/nats": "forgotten texts, nats a token",
    f"{RETAINED}/default/nats": "retained texts, nats a token",
    "robustness/text_cost": "cost of a forget-token, nats a token",
    "forget/default/acc": "forgotten questions, accuracy",
    "retain/perturbed/acc": "retained questions, perturbed, accuracy",
}  # names in course.jsonl, of which those are drawn that were measured


def course(m: Material) -> Figure:
    """Forgetting, retention and robustness during training, a curve for each run with `eval.every`."""
    title = "The course of training"
    parts = []
    for number, run in enumerate(m.runs):
        file = run.folder / "course.jsonl"
        if run.done and file.is_file():
            with m.reading(run):
                about = m.about.set_index("number").loc[number, [*SETTING, "seed", "run"]].to_dict()
                parts.append(pd.read_json(file, lines=True).assign(**about))
    if not parts:
        return Figure("course", title, "Nothing to show: no run has eval.every.", pd.DataFrame())
    data = pd.concat(parts, ignore_index=True)
    data = data.assign(rna=data["nu"].gt(0).map(charts.NOISE)).drop(columns="setting")
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
    told = f" {MOST_COURSES} of {more + MOST_COURSES} runs are drawn; the data has all." if more else ""
    caption = (
        f"A curve for each run, measured every eval.every steps on fewer texts and questions than its result.{told}"
    )
    return Figure("course", title, caption, data, chart)


def _panel(data: pd.DataFrame, look: Look, name: str, methods: Sequence[str]) -> alt.LayerChart | alt.FacetChart:
    x = alt.X("forgotten:Q", title=AXES["forgotten"], scale=alt.Scale(nice=True, zero=True))
    y = alt.Y(f"{name}:Q", title=AXES[name], scale=alt.Scale(nice=True, zero=True))
    shape = charts.noise_shape()
    plane = alt.Chart(data)
    ends = {"y": alt.Y(f"{name}_low:Q", title=y["title"]), "y2": f"{name}_high:Q"}
    layers = [
        plane.mark_rule(opacity=0.4).encode(x=x, color=charts.method_colour(methods), **ends),
        plane.mark_line(opacity=0.5).encode(
            x=x, y=y, color=charts.method_colour(methods), strokeDash=charts.noise_dash()
        ),
        plane.mark_point(filled=True, size=5 * look.size, opacity=0.9).encode(
            x=x, y=y, color=charts.method_colour(methods), shape=shape, tooltip=charts.tooltip(data)
        ),
    ]
    if name == "cost" and "base_cost" in data:
        base = alt.Chart(pd.DataFrame({"base": [data["base_cost"].mean()]}))
        layers.insert(0, base.mark_rule(color=charts.BASE).encode(y=alt.Y("base:Q", title=y["title"])))
    return alt.layer(*layers).properties(width=int(1.5 * look.width), height=int(1.3 * look.height))
