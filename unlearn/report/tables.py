"""The tables of a report, as data frames whose columns are their headings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy import stats

from unlearn.compare import differing_questions, read_samples
from unlearn.evaluate.statistics import paired
from unlearn.report import published
from unlearn.report.choose import ROLE_MEAN, Chosen
from unlearn.report.collect import Run
from unlearn.report.material import Material

NONE = "–"
SHOWN = ("default", "perturbed")
TABLES = ("overview", "table_1", "contrasts", "settings", "accuracies", "unusable", "published")


@dataclass(frozen=True)
class Table:
    """A table; `note` says how to read it, or, where it is empty, why."""

    name: str
    title: str
    note: str
    data: pd.DataFrame
    text: frozenset[str] = field(default_factory=frozenset)  # columns of running text


def tables(m: Material) -> list[Table]:
    """All of them, in the order of the page."""
    listed = [overview(m), table_1(m), contrasts(m), settings(m), accuracies(m), unusable(m)]
    return [*listed, published_choices(m)] if m.paper else listed


def overview(m: Material) -> Table:
    """A row for each run, also for those that have no result."""
    columns = ["method", "coefficient", "nu", "seed", "other", "status"]
    data = m.about[["number", *columns]].rename(columns={"coefficient": "c, β", "nu": "ν"})
    rows = m.accuracies
    if len(rows):
        mean = rows[(rows["task"] == ROLE_MEAN) & (rows["model"] == "unlearned") & rows["query"].isin(SHOWN)]
        wide = mean.pivot_table(index="number", columns=["role", "query"], values="acc", sort=False).round(1)
        for role, query in wide.columns:
            data[f"{role}, {query}"] = data["number"].map(wide[role, query])
        for role, query in (("retain", "perturbed"), ("forget", "default")):
            part = mean[(mean["role"] == role) & (mean["query"] == query)].set_index("number")
            data[f"{role}, {query}: less base"] = data["number"].map(part["difference"].round(1))
            data[f"95 % ({role})"] = data["number"].map(_interval(part))
    data["run"] = m.about["run"]
    if (data["other"] == "").all():
        data = data.drop(columns="other")
    note = (
        "A row for each run. Accuracies in %, a role's being the mean of its tasks; differences from the base model in "
        "points, paired by question, with 95 % intervals over questions."
    )
    return Table("overview", "All runs", note, data.drop(columns="number"), frozenset({"other"}))


def _interval(rows: pd.DataFrame) -> pd.Series:
    """low .. high as text."""
    return rows.apply(lambda row: f"{row['low']:+.1f} .. {row['high']:+.1f}", axis=1) if len(rows) else pd.Series()


def settings(m: Material) -> Table:
    """Means over seeds of each setting."""
    rows = m.unlearned
    note = (
        "Seeds of a setting together: mean and 95 % interval, Student's t over seeds; of a single seed, over questions "
        "(marked q). Where a seed is missing, a column says which and why."
    )
    if rows.empty:
        return Table("settings", "Means over seeds", "No finished run has accuracies.", pd.DataFrame())
    rows = rows[rows["query"].isin(SHOWN)].copy()
    mark = rows["interval"].map({"over seeds": "", "over questions": " q"})
    ends = rows["low"].map("{:.1f}".format) + " .. " + rows["high"].map("{:.1f}".format)
    rows["cell"] = rows["mean"].map("{:.1f}".format) + " (" + ends + ")" + mark
    rows["column"] = rows["role"] + ", " + rows["query"]
    about = rows.drop_duplicates("setting").set_index("setting")
    about = about[["method", "coefficient", "nu", "other", "seeds", "missing"]]
    data = about.join(rows.pivot(index="setting", columns="column", values="cell")[list(dict.fromkeys(rows["column"]))])
    data = data.drop(columns=[name for name in ("other", "missing") if (data[name] == "").all()])
    named = {"coefficient": "c, β", "nu": "ν"}
    return Table("settings", "Means over seeds", note, data.rename(columns=named), frozenset({"other", "missing"}))


def accuracies(m: Material) -> Table:
    """Every accuracy of every finished run, tidy, for one's own analysis."""
    data = m.accuracies
    if len(data):
        data = data.drop(columns=["number", "setting"]).round(3)
    return Table("accuracies", "Every accuracy", "A row for each run, model, task and query; in %.", data)


def unusable(m: Material) -> Table:
    """Runs without a result, and why."""
    rows = m.about[m.about["status"] != "done"]
    data = rows[["run", "status", "method", "coefficient", "nu", "seed", "why", "folder"]]
    note = "These are in no figure, and in no mean." if len(data) else "None: every run that was found is done."
    return Table("unusable", "Failed, unfinished, missing and corrupt runs", note, data, frozenset({"why", "folder"}))


def table_1(m: Material) -> Table:
    """Table 1: RM and RNA models on the tasks near the forgotten, in the paper's form."""
    title = "Table 1 · Tasks near the forgotten"
    rows = _near(m)
    if rows.empty:
        return Table("table_1", title, "Nothing to show: no finished run has tasks of the role near.", pd.DataFrame())
    tasks = list(dict.fromkeys(rows["task"]))
    out = []
    for method, kind in (("Base", False), *((c.method, rna) for c in m.chosen for rna in (False, True))):
        for query in SHOWN:
            of = rows[(rows["method"] == method) & (rows["rna"] == kind) & (rows["query"] == query)]
            plain = rows[(rows["method"] == method) & ~rows["rna"] & (rows["query"] == query)]
            cells = {t: _cell(of, plain if kind else None, t) for t in tasks}
            line = {"method": method, "RNA": "w/ RNA" if kind else "original", "query": query, **cells}
            if m.paper:
                line |= {f"{t} (published)": _published_cell(method, kind, query, t) for t in published.TABLE_1_TASKS}
            out.append(line)
    note = (
        f"Accuracy in %, ± standard error over questions, of several seeds over seeds, and what RNA changes. {m.choice}"
    )
    if m.paper:
        note += f" Columns marked so are {published.SOURCE}."
    return Table("table_1", title, note, pd.DataFrame(out))


def _near(m: Material) -> pd.DataFrame:
    """Near tasks of the base model and of the chosen settings."""
    rows = m.means
    if rows.empty:
        return rows
    rows = rows[(rows["role"] == "near") & (rows["task"] != ROLE_MEAN) & rows["query"].isin(SHOWN)]
    base = rows[rows["model"] == "base"].drop_duplicates(["task", "query"]).assign(method="Base", rna=False)
    own = rows[(rows["model"] == "unlearned") & rows["setting"].isin(m.labels)]
    return pd.concat([base, own.assign(rna=own["nu"] > 0)], ignore_index=True)


def _cell(of: pd.DataFrame, plain: pd.DataFrame | None, task: str) -> str:
    """`60.4 ± 4.0 (+29.2)`; a dash where there is no such run."""
    row = of[of["task"] == task]
    if row.empty:
        return NONE
    mean = row["mean"].iloc[0]
    text = f"{mean:.1f} ± {row['stderr'].iloc[0]:.1f}"
    before = [] if plain is None else list(plain[plain["task"] == task]["mean"])
    return f"{text} ({mean - before[0]:+.1f})" if before else text


def _published_cell(method: str, rna: bool, query: str, task: str) -> str:
    rows = published.table_1()
    found = rows[(rows["method"] == method) & (rows["query"] == query) & (rows["task"] == task)]
    row, plain = found[found["rna"] == rna], found[~found["rna"].astype(bool)]
    if row.empty:
        return NONE
    text = f"{row['acc'].iloc[0]:.1f} ± {row['stderr'].iloc[0]:.1f}"
    return f"{text} ({row['acc'].iloc[0] - plain['acc'].iloc[0]:+.1f})" if rna else text


def contrasts(m: Material) -> Table:
    """What perturbation costs, and what RNA changes: paired by question, of the chosen settings."""
    out = []
    for choice in m.chosen:
        for role in ("retain", "near", "forget"):
            out += _contrasts_of(m, choice, role)
    note = (
        "Differences of accuracy in points, paired by question: means over the seeds of both sides, 95 % intervals and "
        "p from the questions (one seed: bootstrap and McNemar's test; several: t-test of each question's mean). "
        f"{m.choice}"
    )
    if not out:
        note = "Nothing to show: no finished run kept its answers (samples/)."
    return Table(
        "contrasts", "What perturbation costs, and what RNA wins back", note, pd.DataFrame(out), frozenset({"why not"})
    )


def _contrasts_of(m: Material, choice: Chosen, role: str) -> list[dict[str, object]]:
    plain, noisy = (m.runs_of(s) if s is not None else [] for s in (choice.plain, choice.rna))
    both = {r.identity["seed"]: r for r in noisy}
    pairs = [(run, both[run.identity["seed"]]) for run in plain if run.identity["seed"] in both]
    listed = [
        ("perturbation, without RNA", [(run, run) for run in plain], ("default", "perturbed")),
        ("perturbation, with RNA", [(run, run) for run in noisy], ("default", "perturbed")),
        ("RNA, default", pairs, ("default", "default")),
        ("RNA, perturbed", pairs, ("perturbed", "perturbed")),
    ]
    rows = []
    for what, runs, queries in listed:
        measured = _contrast(runs, role, queries)
        if measured is not None:
            rows.append({"method": choice.method, "role": role, "effect of": what, **measured})
    return rows


def _contrast(pairs: Sequence[tuple[Run, Run]], role: str, queries: tuple[str, str]) -> dict[str, object] | None:
    """Of runs a in one query and b in another, by seed; None where a side is not there."""
    for a, b in pairs:
        if queries[0] == queries[1] and (why := differing_questions(a.record, b.record, queries[0])) is not None:
            return {"why not": why}
    answers = [(_right(a, role, queries[0]), _right(b, role, queries[1])) for a, b in pairs]
    answers = [(x, y) for x, y in answers if x and x.keys() == y.keys()]
    if not answers:
        return None
    seeds = len(answers)
    order = sorted(answers[0][0])
    if any(x.keys() != answers[0][0].keys() for x, _ in answers):
        return {"why not": "seeds were asked different questions"}
    counts = {"questions": len(order), "seeds": seeds}
    if seeds == 1:
        x, y = answers[0]
        r = paired([x[q] for q in order], [y[q] for q in order])
        return {**_points(r.difference, r.low, r.high), "p": r.p, **counts}
    means = np.mean([[float(y[q]) - float(x[q]) for q in order] for x, y in answers], axis=0)
    mean, error = float(means.mean()), float(stats.sem(means))
    p = float(stats.ttest_1samp(means, 0.0).pvalue) if error else 1.0
    return {**_points(mean, mean - 1.96 * error, mean + 1.96 * error), "p": p, **counts}


def _points(difference: float, low: float, high: float) -> dict[str, object]:
    return {"difference": round(100 * difference, 1), "95 %": f"{100 * low:+.1f} .. {100 * high:+.1f}"}


def _right(run: Run, role: str, query: str) -> dict[tuple[str, int], bool]:
    """(task, question) -> whether the unlearned model answered it rightly, of a role's tasks."""
    file = run.folder / "samples" / "roles.json"
    tasks = json.loads(file.read_text()).get(role, []) if file.is_file() else []
    answers = read_samples(run.folder, [(task, query) for task in tasks])
    return {(task, q): right for (task, _), found in answers.items() for q, right in found.items()}


def published_choices(m: Material) -> Table:
    """The paper's coefficients, nu and effects beside one's own."""
    own = contrasts(m).data
    rows = []
    for choice in m.chosen:
        row: dict[str, object] = {"method": choice.method, "coefficient": choice.coefficient, "ν": choice.nu}
        for name, what in (("drop, retain", "perturbation, without RNA"), ("gain by RNA, retain", "RNA, perturbed")):
            found = (
                own[(own["method"] == choice.method) & (own["role"] == "retain") & (own["effect of"] == what)]
                if len(own)
                else own
            )
            value = found["difference"].iloc[0] if len(found) and "difference" in found else None
            row[name] = -value if value is not None and name.startswith("drop") else value
        rows.append(row | published.beside(choice.method))
    note = f"Columns that begin with published are {published.SOURCE}; the others are these runs'. Points of accuracy."
    return Table("published", "Beside the paper", note, pd.DataFrame(rows))
