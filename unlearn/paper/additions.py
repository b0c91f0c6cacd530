"""What `unlearn report --paper` adds to a report: published numbers, and the phases of section 6.6 in Figure 3."""

from __future__ import annotations

import math
from dataclasses import replace

import altair as alt
import pandas as pd

from unlearn.analysis.report import curves
from unlearn.analysis.report.charts import Look
from unlearn.analysis.report.effects import effects
from unlearn.analysis.report.figure import Figure, Table
from unlearn.analysis.report.material import Material
from unlearn.analysis.report.tables import SHOWN
from unlearn.analysis.report.write import Additions
from unlearn.paper import published
from unlearn.paper.phases import phases

PHASE_COLOURS = {"I": "#009E73", "II": "#D55E00", "III": "#56B4E9"}


def figure_3(m: Material) -> Figure | None:
    """Accuracy against nu, with the phases of section 6.6 and the nu that the paper found best."""
    figure = curves.figure_3(m, behind=_phases_and_best_nu)
    if figure is None:
        return None
    caption = (
        f"{figure.caption} Dotted vertical line: the ν that the paper found best (published). Shaded: the phases of "
        "section 6.6, read off the means under perturbation, however wide their intervals. In phase I, retained "
        "knowledge gains; in II, it declines; in III, it rises again, and forgotten knowledge with it."
    )
    return replace(figure, caption=caption)


def _phases_and_best_nu(noisy: pd.DataFrame, plain: pd.DataFrame, look: Look) -> list[alt.Chart]:
    retained = plain[(plain["role"] == "retain") & (plain["query"] == "perturbed")]["mean"]
    bands = phases(noisy, float(retained.iloc[0]) if len(retained) else None)
    return [*_phase_bands(bands, look), *_published_rule(published.NU.get(noisy["method"].iloc[0]), look)]


def _phase_bands(bands: pd.DataFrame, look: Look) -> list[alt.Chart]:
    """Shading and names of the phases."""
    drawn = []
    for band in bands.to_dict("records"):
        chart = alt.Chart(pd.DataFrame([{**band, "middle": (band["begin"] * band["end"]) ** 0.5}]))
        shade = chart.mark_rect(opacity=0.1, color=PHASE_COLOURS[band["phase"]])
        name = chart.mark_text(baseline="bottom", dy=-3, fontSize=look.size, color=look.ink)
        drawn.append(shade.encode(x=alt.X("begin:Q", title="ν"), x2="end:Q"))
        drawn.append(name.encode(x="middle:Q", y=alt.value(look.height), text="phase:N"))
    return drawn


def _published_rule(nu: float | None, look: Look) -> list[alt.Chart]:
    """A vertical line at the nu that the paper found best for a method."""
    if nu is None:
        return []
    data = pd.DataFrame([{"nu": nu, "published": f"best ν of the paper (published): {nu:g}"}])
    rule = alt.Chart(data).mark_rule(strokeDash=[1, 3], size=2, color=look.ink, clip=True)
    return [rule.encode(x="nu:Q", tooltip=["published:N"])]


def choices(m: Material) -> Table | None:
    """The paper's coefficients, nu and effects beside those of these runs."""
    differences = {(e.method, e.name): e.difference for e in effects(m) if e.role == "retain"}
    rows = []
    for choice in m.chosen:
        drop, gain = (
            differences.get((choice.method, name), math.nan) for name in ("perturbation, without RNA", "RNA, perturbed")
        )
        row = {"method": choice.method, "c, β": choice.coefficient, "ν": choice.nu}
        row |= {"drop, retain": round(-drop, 1), "gain by RNA, retain": round(gain, 1)}
        rows.append(row | published.beside(choice.method))
    if not rows:
        return None
    note = f"Columns that begin with published are {published.SOURCE}; the others are these runs'. Points of accuracy."
    return Table("published", "Beside the paper", note, pd.DataFrame(rows))


def published_table_1(_m: Material) -> Table:
    """Table 1 as the paper has it."""
    accuracies = published.table_1()
    rows = []
    for (method, rna), of_model in accuracies.groupby(["method", "rna"], sort=False):
        for query in SHOWN:
            of_query = of_model[of_model["query"] == query].set_index("task")
            cells = {f"{task} ↑": _cell(accuracies, method, rna, query, task) for task in of_query.index}
            rows.append({"method": method, "RNA": "w/ RNA" if rna else "original", "query": query, **cells})
    note = f"Accuracy in % ± standard error, and what RNA changes: {published.SOURCE}."
    return Table("published_table_1", "Table 1, as published", note, pd.DataFrame(rows))


def _cell(accuracies: pd.DataFrame, method: str, rna: bool, query: str, task: str) -> str:
    """`60.4 ± 4.0 (+29.2)`."""
    of_task = accuracies[
        (accuracies["method"] == method) & (accuracies["query"] == query) & (accuracies["task"] == task)
    ].set_index("rna")
    text = f"{of_task.loc[rna, 'acc']:.1f} ± {of_task.loc[rna, 'stderr']:.1f}"
    return f"{text} ({of_task.loc[True, 'acc'] - of_task.loc[False, 'acc']:+.1f})" if rna else text


ADDITIONS = Additions(
    figures={"figure_3": figure_3},
    tables={"published": choices, "published_table_1": published_table_1},
)
