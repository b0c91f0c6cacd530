"""What attacks bring back (RUN/attacks, written by `unlearn attack`), and what that says of RNA.

What comes back is measured against the same model without an attack: accuracy on what was to be forgotten, in points
more, or nats a token less on held-out texts to forget.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import altair as alt
import pandas as pd

from unlearn.analysis.report import charts
from unlearn.analysis.report.charts import Look
from unlearn.analysis.report.figure import Figure
from unlearn.analysis.report.material import Material
from unlearn.analysis.settings import SETTING
from unlearn.records.attacks import (
    BASE,
    NOT_ATTACKED,
    RETRAINED,
    UNLEARNED,
    AttackAbout,
    AttackScore,
    attack_folders,
    levels_not_finite,
    read_attack,
    variant_names,
)
from unlearn.records.names import text_role
from unlearn.records.scores import Score, role_means
from unlearn.records.strongest import UNITS, Candidate, candidate, chosen_on, judged
from unlearn.statistics.intervals import over_seeds

HALF_COLUMNS = ("half_0", "half_1", "harm_0", "harm_1")
STRONGEST = "the strongest of them"
DISJOINT = "no attack with a run's own questions was made at the same level on runs with RNA and without"
AXES = {"points": "accuracy on forgotten in %", "nats": "forgotten texts, minus nats a token"}
ROBUST = {
    "points": ("acc", "retain", 100.0, "accuracy on retained in % (perturbed)"),
    "nats": ("nats", text_role("retain"), 1.0, "cost of a forget-token in retained texts, nats a token"),
}


def attack_rows(m: Material) -> pd.DataFrame:
    """A row for each run of this world, attack, level and unit (points or nats).

    Columns: SETTING, seed, attack (with what its variants differ in), level (in words), number, unit, known (the figure
    under attack; higher: more is known), recovered (`known` less that without an attack), base and retrained (those
    models' under the same attack), robust (of the run without an attack), without (its `known`), half_0 and half_1
    (what came back of one half of the items), harm_0 and harm_1 (what it lost of the retained knowledge), and bound.
    `strongest` chooses among them.
    """
    about = m.about.set_index("number")
    rows = []
    for number, run in enumerate(m.runs):
        if run.done and about.loc[number, "world"] == m.world:
            with m.reading(run):
                named = about.loc[number, [*SETTING, "seed"]].to_dict()
                attacks = [read_attack(folder) for folder in attack_folders(run.folder)]
                rows += [named | row for row in _of_run(attacks)]
                if sentences := levels_not_finite(row for _, of_attack in attacks for row in of_attack):
                    m.not_finite[str(run.folder)] = sentences[0]
    if not rows:
        return pd.DataFrame()
    names = variant_names([(row["attack"], row.pop("arguments")) for row in rows])
    frame = pd.DataFrame(rows).assign(attack=names)
    # Of an attack that was made on several sets of questions, that which most runs were asked.
    often = frame.groupby("questions")["questions"].transform("size")
    frame = frame.loc[often.sort_values(ascending=False, kind="stable").index]
    return frame.drop_duplicates(["setting", "seed", "attack", "level", "unit"]).drop(columns="questions").sort_index()


def _of_run(attacks: Sequence[tuple[AttackAbout, list[AttackScore]]]) -> Iterator[dict[str, Any]]:
    plain = {about.questions: [row.score for row in rows] for about, rows in attacks if about.attack == NOT_ATTACKED}
    for about, rows in attacks:
        without = plain.get(about.questions)
        if about.attack == NOT_ATTACKED or without is None:
            continue
        for level, name in dict.fromkeys((row.level, row.level_name) for row in rows):
            scores = [row.score for row in rows if row.level == level]
            of_level = {"attack": about.attack, "level": name, "number": level}
            of_level |= {"arguments": about.arguments, "bound": about.arguments.get("bound")}
            of_level |= {"questions": about.questions, "remark": about.remark}
            for unit in UNITS:
                known, before = _known(scores, unit, UNLEARNED), _known(without, unit, UNLEARNED)
                if known is not None and before is not None:
                    yield of_level | {
                        "unit": unit,
                        "known": known,
                        "recovered": known - before,
                        "without": before,
                        "base": _known(scores, unit, BASE),
                        "retrained": _known(scores, unit, RETRAINED),
                        **_of_halves(scores, without, unit),
                        "robust": _robust(without, unit),
                    }


def _known(scores: Sequence[Score], unit: str, model: str) -> float | None:
    measure, role, _, factor = UNITS[unit]
    value = role_means(scores, measure, model=model).get((role, "default"))
    return None if value is None else factor * value


def _of_halves(scores: Sequence[Score], without: Sequence[Score], unit: str) -> dict[str, float | None]:
    found = candidate(scores, without, unit)
    back, harm = ((None, None), (None, None)) if found is None else (found.back, found.harm)
    return dict(zip(HALF_COLUMNS, (*back, *harm), strict=True))


def _robust(scores: Sequence[Score], unit: str) -> float | None:
    measure, role, factor, _ = ROBUST[unit]
    against = "default" if unit == "nats" else None
    value = role_means(scores, measure, against=against).get((role, "perturbed"))
    return None if value is None else factor * value


def comparable(rows: pd.DataFrame) -> pd.DataFrame:
    """Of each method, seed and unit the attacks and levels with RNA and without, and the runs that have all of these.

    More attacks or levels bring back more: a run that was put to fewer would look better than it is.
    """
    of = ["method", "seed", "unit"]
    rows = rows.dropna(subset="recovered")
    rows = rows.assign(with_rna=charts.noise(rows["nu"]), made=rows["attack"] + ", " + rows["level"])
    sides = rows.groupby(of, dropna=False)["with_rna"].transform("nunique")
    rows = rows[rows.groupby([*of, "made"], dropna=False)["with_rna"].transform("nunique") == sides]
    levels_of_run = rows.groupby([*of, "setting"], sort=False, dropna=False)["made"].transform("nunique")
    return rows[levels_of_run == rows.groupby(of, dropna=False)["made"].transform("nunique")].drop(
        columns=["with_rna", "made"]
    )


def strongest(rows: pd.DataFrame) -> pd.DataFrame:
    """Of each run and unit the attack and level that bring back most, and how much.

    The strongest of many is too strong on the items that choose it. So that of one half of them is measured on the
    other half, and the other way round, and the mean is what is recovered. Of attacks without halves, it is not.
    """
    by_run = rows.groupby(["setting", "seed", "unit"], sort=False, dropna=False)
    return pd.DataFrame([_strongest(of) for _, of in by_run]).infer_objects()


def _strongest(rows: pd.DataFrame) -> pd.Series:
    halves = rows.dropna(subset=["half_0", "half_1"])
    if halves.empty:
        return rows.loc[rows["recovered"].idxmax()]
    made = [Candidate((row.half_0, row.half_1), (row.harm_0, row.harm_1)) for row in halves.itertuples()]
    bounds = [None if pd.isna(bound) else float(bound) for bound in halves["bound"]]
    picks = [chosen_on(half, made, bounds) for half in (0, 1)]
    recovered = judged(made, picks)
    # Where no rate is within the bound, the first stands for the attack.
    first, second = (halves.iloc[0 if pick is None else pick] for pick in picks)
    more = first if first["recovered"] >= second["recovered"] else second
    others = {model: _mean(first[model], second[model]) for model in (BASE, RETRAINED)}
    return pd.Series({**more, **others, "recovered": recovered, "known": more["without"] + recovered})


def _mean(first: float | None, second: float | None) -> float | None:
    return None if pd.isna(first) or pd.isna(second) else (first + second) / 2  # type: ignore[operator]


def figure(m: Material) -> Figure | None:
    """Robustness against what the strongest attack brings back."""
    rows = attack_rows(m)
    rows = rows if rows.empty else comparable(rows)
    if rows.empty:
        return None
    data = pd.DataFrame(
        {**dict(zip([*SETTING, "unit"], key, strict=True)), "seeds": len(group), **_summary(group)}
        for key, group in strongest(rows).groupby([*SETTING, "unit"], sort=False, dropna=False)
    )
    data = data.assign(rna=charts.noise(data["nu"])).drop(columns="setting").sort_values(["method", "nu"])
    methods, kinds = list(dict.fromkeys(data["method"])), charts.kinds_of_noise(data)

    def chart(look: Look) -> alt.ConcatChart:
        units = [unit for unit in UNITS if (data["unit"] == unit).any()]
        return charts.side_by_side(*(_plane(data[data["unit"] == unit], look, unit, methods, kinds) for unit in units))

    caption = (
        "A point for each setting: what the strongest attack brings back of what was forgotten (points of accuracy, "
        "or nats a token on held-out texts; `strongest` says which it is, chosen on one half of the items and "
        "measured on the other), against the robustness of the same model without an attack. Of a method and seed "
        "those attacks and levels count that were made with RNA and without, and the runs that were put to all of "
        "them. Means with 95 % intervals over seeds, where there are several."
    )
    return Figure("attacks", "Attacks · Robust, and still forgotten?", caption, data, chart)


def _summary(group: pd.DataFrame) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for name in ("robust", "recovered", "known", "without"):
        mean, low, high = over_seeds(list(group[name].astype(float)))
        summary |= {name: mean, f"{name}_low": low, f"{name}_high": high}
    attacks = (group["attack"] + ", " + group["level"]).value_counts()
    return summary | {"strongest": f"{attacks.index[0]} ({attacks.iloc[0]} of {len(group)})"}


def _plane(
    data: pd.DataFrame, look: Look, unit: str, methods: Sequence[str], kinds: Sequence[str]
) -> alt.LayerChart | alt.FacetChart:
    more = "points more" if unit == "points" else "nats a token less"
    x = alt.X("robust:Q", title=ROBUST[unit][3], scale=_robust_scale(data, unit))
    y = alt.Y("recovered:Q", title=f"the strongest attack brings back ({more})", scale=alt.Scale(zero=True))
    colour, plane = charts.method_colour(methods), alt.Chart(data)
    across = alt.X("robust_low:Q", title=x["title"], scale=x["scale"])
    upwards = alt.Y("recovered_low:Q", title=y["title"])
    layers = [
        plane.mark_rule(opacity=0.35, clip=True).encode(x=x, y=upwards, y2="recovered_high:Q", color=colour),
        plane.mark_rule(opacity=0.35, clip=True).encode(x=across, x2="robust_high:Q", y=y, color=colour),
        plane.mark_line(opacity=0.4).encode(x=x, y=y, color=colour, order="nu:Q"),
        plane.mark_point(filled=True, size=5 * look.size, opacity=0.9).encode(
            x=x, y=y, color=colour, shape=charts.noise_shape(kinds), tooltip=charts.tooltip(data)
        ),
    ]
    return alt.layer(*layers).properties(width=int(1.5 * look.width), height=int(1.3 * look.height))


def _robust_scale(data: pd.DataFrame, unit: str) -> alt.Scale:
    """Of accuracies: within 0 and 100 %, where Student's intervals of two or three seeds go beyond."""
    if unit != "points":
        return alt.Scale(zero=False)
    half = (data["robust_high"] - data["robust_low"]).median() / 2
    return charts.span(data["robust"], 2 + (0.0 if pd.isna(half) else float(half)))


def levels(m: Material) -> Figure | None:
    """What is known of the forgotten at each level of each attack, and by the base model under the same attack."""
    rows = attack_rows(m)
    if rows.empty:
        return None
    rows = rows.astype({"base": float, "retrained": float})
    by = [*SETTING, "attack", "level", "number", "unit"]
    data = rows.groupby(by, sort=False, dropna=False)[["known", "without", "base", "retrained"]].mean().reset_index()
    data = data.assign(
        rna=charts.noise(data["nu"]),
        curve=data["coefficient"] + data["nu"].map(lambda nu: " " if pd.isna(nu) else f" {nu:g} ") + data["other"],
    )
    data = data.drop(columns="setting").sort_values(["attack", "number"])
    methods, kinds = list(dict.fromkeys(data["method"])), charts.kinds_of_noise(data)

    def chart(look: Look) -> alt.ConcatChart:
        panels = data.groupby(["attack", "unit"], sort=True)
        return charts.side_by_side(*(_course(part, look, unit, methods, kinds, name) for (name, unit), part in panels))

    caption = (
        "Accuracy on what was to be forgotten, and minus nats a token, at each level of each attack; grey: the base "
        "model under the same attack (an attack can do other things to it for each method), dotted: a model "
        "trained without it (`--retrained`). Means over seeds."
    )
    remarks = rows.dropna(subset="remark").drop_duplicates(["attack", "remark"])
    caption += "".join(f" {row.attack}: {row.remark}." for row in remarks.itertuples())
    return Figure("attack_levels", "Attacks · What comes back", caption, data, chart)


def _course(
    part: pd.DataFrame, look: Look, unit: str, methods: Sequence[str], kinds: Sequence[str], name: str
) -> alt.LayerChart | alt.FacetChart:
    order = list(dict.fromkeys(part["level"]))
    x = alt.X("level:N", sort=order, title=None, axis=alt.Axis(labelAngle=-40))
    y = alt.Y("known:Q", title=AXES[unit], scale=alt.Scale(zero=False))
    chart = alt.Chart(part)
    named = {"color": charts.method_colour(methods), "strokeDash": charts.noise_dash(kinds), "detail": "curve:N"}
    layers = []
    for model, dash in (("base", [1, 0]), ("retrained", [2, 3])):
        its = alt.Y(f"{model}:Q", title=y["title"])
        other = alt.Chart(part.dropna(subset=model)).encode(x=x, y=its, detail=["method:N", "curve:N"])
        layers += [other.mark_line(color=charts.BASE, strokeDash=dash)]
        layers += [other.mark_point(color=charts.BASE).encode(tooltip=charts.tooltip(part[["method", "level", model]]))]
    layers += [
        chart.mark_line(opacity=0.7).encode(x=x, y=y, **named),
        chart.mark_point(filled=True, size=3 * look.size).encode(
            x=x, y=y, shape=charts.noise_shape(kinds), tooltip=charts.tooltip(part), **named
        ),
    ]
    return alt.layer(*layers).properties(width=look.width, height=look.height, title=name)
