"""The tables of a report, as data frames whose columns are their headings."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pandas as pd

from unlearn.analysis.report.contrasts import contrasts_of
from unlearn.analysis.report.frames import MEAN
from unlearn.analysis.report.material import Material

NONE = "–"
SHOWN = ("default", "perturbed")
TABLES = ("overview", "table_1", "contrasts", "settings", "accuracies", "unusable")
LONGEST = 300  # letters of an error that are shown; the run's folder has all
GREEK = {"beta": "β", "gamma": "γ", "nu": "ν"}


@dataclass(frozen=True)
class Table:
    """A table; `note` says how to read it, or, where it is empty, why."""

    name: str
    title: str
    note: str
    data: pd.DataFrame
    text: frozenset[str] = field(default_factory=frozenset)  # columns of running text


def tables(m: Material) -> list[Table]:
    """All of them, in the order of the page; to be made after the figures, which find what cannot be read."""
    return [overview(m), table_1(m), contrasts(m), settings(m), accuracies(m), unusable(m)]


def _about(m: Material) -> pd.DataFrame:
    """A row for each run: method, its arguments, nu, seed, and what else differs."""
    arguments = {c: c.removeprefix("method.") for c in m.about if str(c).startswith("method.")}
    columns = ["method", *arguments, "nu", "seed", "other"]
    named = {**{c: GREEK.get(short, short) for c, short in arguments.items()}, "nu": GREEK["nu"]}
    data = m.about[columns].rename(columns=named)
    return data.drop(columns="other") if (data["other"] == "").all() else data


def overview(m: Material) -> Table:
    """A row for each run, also for those that have no result."""
    data = _about(m).assign(status=m.about["status"])
    rows, number = m.accuracies, m.about["number"]
    if len(rows):
        mean = rows[(rows["task"] == MEAN) & (rows["model"] == "unlearned") & rows["query"].isin(SHOWN)]
        for (role, query), part in mean.groupby(["role", "query"], sort=False):
            part = part.set_index("number")
            data[f"{role}, {query}"] = number.map(part["acc"].round(1))
            data[f"{role}, {query}: less base"] = number.map(part["difference"].round(1))
            data[f"95 % ({role}, {query})"] = number.map(
                {n: _interval(low, high) for n, low, high in zip(part.index, part["low"], part["high"], strict=True)}
            )
    note = (
        "A row for each run. Accuracies in %, a role's being the mean of its tasks; differences from the base model in "
        "points, paired by question, with 95 % intervals over questions."
    )
    data["run"] = m.about["run"]
    return Table("overview", "All runs", note, data, frozenset({"other"}))


def _interval(low: float, high: float) -> str:
    return "" if math.isnan(low) else f"{low:+.1f} .. {high:+.1f}"


def settings(m: Material) -> Table:
    """Means over seeds of each setting, of those too that have no result."""
    about = _about(m).drop(columns="seed").assign(setting=m.about["setting"])
    about = about[about["setting"] != ""].drop_duplicates("setting").set_index("setting")
    rows = m.unlearned
    if len(rows):
        rows = rows[rows["query"].isin(SHOWN)]
        seeds = rows.drop_duplicates("setting").set_index("setting")["seeds"]
        about["seeds"] = seeds.reindex(about.index).fillna(0).astype(int)
    lacking = m.lacking
    about["missing"] = [lacking[setting] for setting in about.index]
    for (role, query), part in rows.groupby(["role", "query"], sort=False) if len(rows) else ():
        cells = zip(part["setting"], part["mean"], part["low"], part["high"], part["interval"], strict=True)
        about[f"{role}, {query}"] = pd.Series({s: _mean_cell(*values) for s, *values in cells})
    if (about["missing"] == "").all():
        about = about.drop(columns="missing")
    note = (
        "Seeds of a setting together: mean and 95 % interval, Student's t over seeds; of a single seed, over questions "
        "(marked q). Where a seed is missing, a column says which and why."
    )
    return Table("settings", "Means over seeds", note, about, frozenset({"other", "missing"}))


def _mean_cell(mean: float, low: float, high: float, interval: str) -> str:
    if math.isnan(low):
        return f"{mean:.1f}"
    return f"{mean:.1f} ({low:.1f} .. {high:.1f})" + ("" if interval == "over seeds" else " q")


def accuracies(m: Material) -> Table:
    """Every accuracy of every finished run, tidy, for one's own analysis."""
    data = m.accuracies
    if len(data):
        data = data.drop(columns=["number", "setting", "world"]).round(3)
    return Table("accuracies", "Every accuracy", "A row for each run, model, task and query; in %.", data)


def unusable(m: Material) -> Table:
    """Runs without a result, or of which something could not be read, and why."""
    data = m.about[["run", "status", "method", "coefficient", "nu", "seed", "why", "folder"]].copy()
    measured = set(m.accuracies["number"]) if len(m.accuracies) else set()
    measured |= {number for number, run in enumerate(m.runs) if any(name.endswith("/nats") for name in run.metrics)}
    bare = (data["status"] == "done") & ~m.about["number"].isin(measured)
    data.loc[bare, ["status", "why"]] = ["not evaluated", "done, but metrics.json has neither accuracies nor texts"]
    for folder, problem in m.problems.items():
        place = (data["folder"] == folder) & (data["status"] == "done")
        data.loc[place, ["status", "why"]] = ["partly unreadable", problem]
    data = data[data["status"] != "done"].rename(columns={"coefficient": "c, β", "nu": "ν"})
    data["why"] = [" ".join(why.split())[:LONGEST] for why in data["why"]]
    note = "These are in no figure and no mean, or not in all of them." if len(data) else "None: all runs are done."
    title = "Failed, unfinished, missing and corrupt runs"
    return Table("unusable", title, note, data, frozenset({"why", "folder"}))


def table_1(m: Material) -> Table:
    """Table 1: RM and RNA models on the tasks near the forgotten, in the paper's form."""
    title = "Table 1 · Tasks near the forgotten"
    rows = _near(m)
    if rows.empty:
        return Table("table_1", title, "Nothing to show: no finished run has tasks of the role near.", pd.DataFrame())
    tasks = list(dict.fromkeys(rows["task"]))
    methods = [c.method for c in m.chosen]
    out = []
    for method, rna in (("Base", False), *((method, rna) for method in methods for rna in (False, True))):
        for query in SHOWN:
            cells = {f"{task} ↑": _cell(rows, method, rna, query, task) for task in tasks}
            out.append({"method": method, "RNA": "w/ RNA" if rna else "original", "query": query, **cells})
    note = (
        "Accuracy in % ± standard error (over questions; of several seeds, over seeds), and what RNA changes. Starred: "
        f"the best unlearned model of its kind of query. {m.choice}"
    )
    return Table("table_1", title, note, pd.DataFrame(out))


def _near(m: Material) -> pd.DataFrame:
    """Near tasks of the base model and of the chosen settings."""
    rows = m.means
    if rows.empty:
        return rows
    near = (rows["role"] == "near") & (rows["task"] != MEAN) & rows["query"].isin(SHOWN) & (rows["world"] == m.world)
    rows = rows[near]
    base = rows[rows["model"] == "base"].drop_duplicates(["task", "query"]).assign(method="Base", rna=False)
    own = rows[(rows["model"] == "unlearned") & rows["setting"].isin(m.standing)]
    return pd.concat([base, own.assign(rna=own["nu"] > 0)], ignore_index=True)


def _cell(rows: pd.DataFrame, method: str, rna: bool, query: str, task: str) -> str:
    """`60.4 ± 4.0 (+29.2) *`; a dash where there is no such run."""
    asked = rows[(rows["query"] == query) & (rows["task"] == task)]
    of = asked[(asked["method"] == method)].set_index("rna")
    if rna not in of.index:
        return NONE
    mean, error = of.loc[rna, "mean"], of.loc[rna, "stderr"]
    change = f" ({mean - of.loc[False, 'mean']:+.1f})" if rna and False in of.index else ""
    best = method != "Base" and mean == asked[asked["method"] != "Base"]["mean"].max()
    return f"{mean:.1f} ± {error:.1f}{change}{' *' if best else ''}"


def contrasts(m: Material) -> Table:
    """The drop under perturbation and the effect of RNA, paired by question, of the chosen settings."""
    out = [
        {
            "method": choice.method,
            "role": role,
            "effect of": effect,
            "difference": round(c.difference, 1),
            "95 % over seeds": _interval(c.seeds_low, c.seeds_high),
            "p over seeds": c.seeds_p,
            "95 % over questions": _interval(c.low, c.high),
            "p over questions": c.p,
            "questions": c.questions,
            "seeds": c.seeds,
            "why not": c.why_not,
        }
        for choice in m.chosen
        for role in ("retain", "near", "forget")
        if any(role in run.roles for run in m.runs if run.done)
        for effect, c in contrasts_of(m, choice, role).items()
    ]
    data = pd.DataFrame(out)
    if len(data) and (data["why not"] == "").all():
        data = data.drop(columns="why not")
    note = (
        "Differences of accuracy in points, paired by question, a role's being the mean of its tasks. Over questions: "
        "how sure the difference is of these very models. Over seeds (Student's t): how sure it is of the method; few "
        f"seeds say little. {m.choice}"
    )
    if not out:
        note = "Nothing to show: no finished run kept its answers (samples/)."
    title = "What perturbation costs, and what RNA wins back"
    return Table("contrasts", title, note, data, frozenset({"why not"}))
