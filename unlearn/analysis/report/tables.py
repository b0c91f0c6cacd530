"""The tables of a report, as data frames whose columns are their headings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pandas as pd

from unlearn.analysis.frames import MEAN, PERCENT
from unlearn.analysis.report import by_word
from unlearn.analysis.report.effects import effects
from unlearn.analysis.report.figure import Table
from unlearn.analysis.report.material import Material
from unlearn.analysis.settings import telling_keys
from unlearn.records.names import text_role
from unlearn.records.scores import AGREEMENT, COUNTS, MAXLOGIT_NOT_FINITE, NOT_FINITE, why_not_finite

NONE = "–"
SHOWN = ("default", "perturbed")
USUAL = ("acc", "nats", AGREEMENT)  # measures
DIGITS = {"acc": 1, AGREEMENT: 1}  # of what is shown, behind the point; of other measures three
FIRST = ("forget", "retain", text_role("forget"), text_role("retain"))  # roles
LONGEST = 300  # letters of an error that are shown; the run's folder has all
GREEK = {"beta": "β", "gamma": "γ", "nu": "ν"}


def _named(m: Material) -> pd.DataFrame:
    """A row for each run: method, its arguments, nu, and the keys that tell the runs apart."""
    arguments = [str(c) for c in m.about if str(c).startswith("method.") and pd.api.types.is_numeric_dtype(m.about[c])]
    short = {c: GREEK.get(c.removeprefix("method."), c.removeprefix("method.")) for c in arguments}
    return m.about[["method", *arguments, "nu", *telling_keys(m.about)]].rename(columns={**short, "nu": GREEK["nu"]})


def _measured(m: Material) -> pd.DataFrame:
    """The roles' means that tables show: accuracies, nats a token and agreement, and what tasks without these have."""
    rows = m.means[(m.means["task"] == MEAN) & (m.means["against"] == "") & m.means["query"].isin(SHOWN)]
    usual = rows["measure"].isin(USUAL)
    others = ~rows["role"].isin(set(rows["role"][usual])) & ~rows["measure"].isin([*COUNTS, "perplexity"])
    return rows[usual | others]


def _heading(role: str, query: str, measure: str) -> str:
    """`forget`, `retain, perturbed`, `forget_text`, `generated exact_match`."""
    return role + ("" if measure in ("acc", "nats") else f" {measure}") + ("" if query == "default" else f", {query}")


def settings(m: Material) -> Table | None:
    """The result: a row for each setting, with the means over its seeds, and for the base model."""
    named = _named(m).assign(setting=m.about["setting"], world=m.about["world"])
    named = named[named["setting"].notna()].drop_duplicates("setting")
    if named.empty:
        return None
    worlds = [world for world in dict.fromkeys(named["world"]) if world]
    base = pd.DataFrame({"method": "Base", "setting": worlds, "world": worlds})
    of_worlds = [part for w in worlds for part in (base[base["world"] == w], named[named["world"] == w])]
    data = pd.concat([*of_worlds, named[named["world"] == ""]]).set_index("setting").drop(columns="world")
    best = {choice.rna or choice.plain for choice in m.chosen if choice.of > 1}
    data["method"] = data["method"].where(~data.index.isin(list(best)), data["method"] + " *")
    rows = _measured(m)
    rows = rows.assign(key=rows["setting"].where(rows["model"] != "base", rows["world"]))
    groups = rows.drop_duplicates(["key", "role", "query", "measure"]).groupby(["role", "query", "measure"], sort=False)
    for (role, query, measure), part in sorted(groups, key=_place):
        cells = {row.key: _mean_cell(row) for row in part.itertuples()}
        data[_heading(role, query, measure)] = [cells.get(key) for key in data.index]
    seeds = rows[rows["model"] != "base"].drop_duplicates("setting").set_index("setting")["seeds"]
    counts = [None if key in worlds else int(seeds.get(key, 0)) for key in data.index]
    data["seeds"] = pd.array(counts, dtype="Int64")
    lacking = m.lacking
    data["missing"] = [lacking.get(key) or None for key in data.index]
    data["not finite"] = data.index.map(_not_finite(m, base=m.about["world"], unlearned=m.about["setting"]))
    note = (
        "Accuracies in %, held-out texts (roles that end in _text) in nats a token; a role is the mean of its tasks. "
        "Agreement: the share of a text's next tokens at which a model's first choice is the base model's, in %. "
        "Means over seeds ± half of the 95 % interval: Student's t over seeds; marked q, of a single seed, over "
        "questions. Of the keys in which the runs differ, those that follow from others are left out."
    )
    if best:
        note += (
            " Starred: of a method's settings with RNA, the one with the highest accuracy on retained knowledge under "
            "perturbation minus that on forgotten knowledge; on texts, the one that forgets most minus what it loses "
            "of retained texts."
        )
    data = _tidy(data.reset_index(drop=True))
    keys, text = len(set(data) & set(named)), frozenset({"missing", "not finite"})
    return Table("settings", "Results by setting", note, data, text, keys=keys)


def _not_finite(m: Material, **rows: pd.Series) -> dict[Any, str]:
    """{row: how many answers of which roles are not finite, in words}; `rows` gives a model's rows, run by run."""
    counts = m.scores[m.scores["measure"].isin([NOT_FINITE, MAXLOGIT_NOT_FINITE]) & (m.scores["task"] != MEAN)]
    texts: dict[Any, list[str]] = {}
    for model, keys in rows.items():
        named = counts[counts["model"] == model]
        named = named.assign(key=named["number"].map(dict(zip(m.about["number"], keys, strict=True))))
        if model == "base":
            named = named.drop_duplicates(["key", "role", "task", "query", "measure"])  # all runs of a world share it
        sums = named.groupby(["key", "role", "query", "measure"], sort=False)[["value", "n"]].sum()
        for (key, role, query, measure), (value, n) in zip(sums.index, sums.to_numpy(), strict=True):
            what = _heading(role, query, "acc" if measure == NOT_FINITE else "MaxLogit")
            texts.setdefault(key, []).append(f"{what}: {value:.0f} of {n:.0f}")
    return {key: "; ".join(parts) for key, parts in texts.items()}


def _place(group: tuple[Any, pd.DataFrame]) -> tuple[int, str, str]:
    """Forgetting and retention come first."""
    (role, query, _), _ = group
    return FIRST.index(role) if role in FIRST else len(FIRST), role, query


def _tidy(data: pd.DataFrame) -> pd.DataFrame:
    """Without columns that have nothing."""
    return data.drop(columns=[column for column in data if data[column].isna().all()])


def _mean_cell(row: object) -> str:
    mean, low, high = row.mean, row.low, row.high  # type: ignore[attr-defined]
    digits = DIGITS.get(row.measure, 3)  # type: ignore[attr-defined]
    if math.isnan(low):
        return f"{mean:.{digits}f}"
    half = max(mean - low, high - mean)
    return f"{mean:.{digits}f} ± {half:.{digits}f}" + ("" if row.interval == "over seeds" else " q")  # type: ignore[attr-defined]


def runs(m: Material) -> Table:
    """A row for each run, also for those that have no result."""
    named = _named(m)
    data = named.assign(seed=m.about["seed"], status=m.about["status"])
    scores, number = m.scores, m.about["number"]
    rows = scores[(scores["task"] == MEAN) & (scores["model"] == "unlearned") & scores["query"].isin(SHOWN)]
    rows = rows[rows["measure"].isin(USUAL)]
    for (role, query, measure), part in rows.groupby(["role", "query", "measure"], sort=False):
        factor, digits = (100, 1) if measure in PERCENT else (1, 3)
        heading = _heading(role, query, measure)
        value = part[part["against"] == ""].set_index("number")["value"]
        data[heading] = number.map((factor * value).round(digits))
        base = part[part["against"] == "base"].set_index("number")
        if len(base):
            texts = {row.Index: _difference(row, factor, digits) for row in base.itertuples()}
            data[f"{heading}: minus base"] = number.map(texts)
    note = (
        "A row for each run. Accuracies in %, held-out texts in nats a token, a role being the mean of its tasks. "
        "Differences from the base model are paired by question, with 95 % intervals over questions."
    )
    without = number.map(_not_finite(m, unlearned=number))
    data = data.assign(**({"not finite": without} if without.notna().any() else {}), run=m.about["run"])
    return Table("runs", "All runs", note, data, keys=named.shape[1])


def _difference(row: object, factor: int, digits: int) -> str:
    value, low, high = (factor * getattr(row, name) for name in ("value", "low", "high"))
    return f"{value:+.{digits}f}" + ("" if math.isnan(low) else f" ({low:+.{digits}f} .. {high:+.{digits}f})")


def scores(m: Material) -> Table | None:
    """Every score of every finished run, tidy, for one's own analysis."""
    if m.scores.empty:
        return None
    named = m.about[["number", "run", "method", "coefficient", "nu", "seed", "other"]]
    data = named.merge(m.scores, on="number").drop(columns="number")
    return Table("scores", "Every score", "A row for each run, model, task, query and measure.", data)


def unusable(m: Material) -> Table | None:
    """Runs without a result, or of which something could not be read, and why."""
    data = m.about[["run", "status", "method", "coefficient", "nu", "seed", "why", "folder"]].copy()
    bare = (data["status"] == "done") & ~m.about["number"].isin(set(m.scores["number"]))
    data.loc[bare, ["status", "why"]] = ["not evaluated", "done, but there are no scores"]
    without = {str(run.folder): sentence for run in m.runs if (sentence := why_not_finite(run.scores)) is not None}
    for status, why in (("partly unreadable", m.problems), ("partly not finite", m.not_finite | without)):
        for folder, problem in why.items():
            place = (data["folder"] == folder) & (data["status"] == "done")
            data.loc[place, ["status", "why"]] = [status, problem]
    data = data[data["status"] != "done"].rename(columns={"coefficient": "c, β", "nu": "ν"})
    data["why"] = [" ".join(why.split())[:LONGEST] for why in data["why"]]
    note = "These are in no figure and no mean, or not in all of them."
    title = "Failed, unfinished, missing and corrupt runs"
    return Table("unusable", title, note, data, frozenset({"why", "folder"})) if len(data) else None


def table_1(m: Material) -> Table | None:
    """Table 1: RM and RNA models on the tasks near the forgotten, in the paper's form."""
    rows = _near(m)
    if rows.empty:
        return None
    tasks = list(dict.fromkeys(rows["task"]))
    lines = []
    for method, rna in (("Base", False), *((c.method, rna) for c in m.chosen for rna in (False, True))):
        for query in SHOWN:
            cells = {f"{task} ↑": _cell(rows, method, rna, query, task) for task in tasks}
            lines.append({"method": method, "RNA": "w/ RNA" if rna else "original", "query": query, **cells})
    note = (
        "Accuracy in % ± standard error (over questions; of several seeds, over seeds), and what RNA changes. Starred: "
        f"the best unlearned model of its kind of query. {m.choice}"
    )
    return Table("table_1", "Table 1 · Tasks near the forgotten", note, pd.DataFrame(lines))


def _near(m: Material) -> pd.DataFrame:
    """Near tasks of the base model and of the chosen settings."""
    rows = m.means[(m.means["role"] == "near") & (m.means["task"] != MEAN) & (m.means["world"] == m.world)]
    rows = rows[rows["query"].isin(SHOWN) & (rows["measure"] == "acc") & (rows["against"] == "")]
    base = rows[rows["model"] == "base"].drop_duplicates(["task", "query"]).assign(method="Base", rna=False)
    chosen = rows[(rows["model"] == "unlearned") & rows["setting"].isin(list(m.shown))]
    return pd.concat([base, chosen.assign(rna=chosen["nu"] > 0)], ignore_index=True)


def _cell(rows: pd.DataFrame, method: str, rna: bool, query: str, task: str) -> str:
    """`60.4 ± 4.0 (+29.2) *`; a dash where there is no such run."""
    asked = rows[(rows["query"] == query) & (rows["task"] == task)]
    of_method = asked[(asked["method"] == method)].set_index("rna")
    if rna not in of_method.index:
        return NONE
    mean, error = of_method.loc[rna, "mean"], of_method.loc[rna, "stderr"]
    change = f" ({mean - of_method.loc[False, 'mean']:+.1f})" if rna and False in of_method.index else ""
    best = method != "Base" and mean == asked[asked["method"] != "Base"]["mean"].max()
    return f"{mean:.1f} ± {error:.1f}{change}{' *' if best else ''}"


def contrasts(m: Material) -> Table | None:
    """What perturbation costs, and what RNA changes, of the chosen settings."""
    lines = [
        {
            "method": effect.method,
            "role": effect.role,
            "effect of": effect.name,
            "difference": effect.text,
            "seeds": effect.seeds,
            "why not": effect.why_not,
        }
        for effect in effects(m)
    ]
    if not lines:
        return None
    data = pd.DataFrame(lines)
    if (data["why not"] == "").all():
        data = data.drop(columns="why not")
    note = (
        "Accuracy in points, held-out texts in nats a token, with 95 % intervals: Student's t over seeds, which is of "
        "the method; marked q, of a single seed, over its questions, paired, which is of these very models. "
        f"{m.choice}"
    )
    return Table("contrasts", "What perturbation costs, and what RNA wins back", note, data, frozenset({"why not"}))


TABLES: dict[str, Callable[[Material], Table | None]] = {
    "settings": settings,
    "contrasts": contrasts,
    "words": by_word.table,
    "table_1": table_1,
    "runs": runs,
    "scores": scores,
    "unusable": unusable,
}
