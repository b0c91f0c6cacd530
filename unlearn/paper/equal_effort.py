"""The best of equally many trials of each method, with RNA and without, judged on other items and seeds.

`make equal-effort` makes the searches and the runs that judge their winners; `unlearn equal-effort` writes the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from unlearn.analysis.collect import Run, collect
from unlearn.analysis.report.answers import Answers, by_word, inserted_words, places
from unlearn.analysis.report.export import as_text, write_text
from unlearn.analysis.report.figure import Table
from unlearn.analysis.report.material import Material, gather
from unlearn.analysis.report.text_costs import beyond_base, minus
from unlearn.analysis.report.write import check_output
from unlearn.analysis.searches import find_searches
from unlearn.errors import UserError
from unlearn.paper.claims.contrasts import Contrast, contrast
from unlearn.sweeps.search.best import best_trial
from unlearn.sweeps.search.figures import FIGURES, Figure
from unlearn.sweeps.search.study import ABOUT, OF_TRIAL, read_study

JUDGED = "judged"  # the folder with a winner's runs, beside its search's `searches`
RULE = """\
Each method was searched twice, with RNA's nu in the space and with nu = 0, with equally many trials, the same
bounds and the same choosing seed and items. The winner is the best trial within the bounds (`unlearn best`). It was
then trained with other seeds and judged on other items. Every figure is the unlearned model's less the base
model's, with a 95 % interval over seeds and items (docs/statistics.md). A winner keeps the bounds on the choosing
items; on the others it may break them. As many trials search a space less well that has more keys, or that lies
badly."""


@dataclass(frozen=True)
class Winner:
    """A search's best trial and its judging runs by seed; `why_not` says why there is none."""

    method: str
    rna: bool
    trials: int
    judged: Sequence[str]  # names of figures
    number: int | None = None
    params: Mapping[str, Any] | None = None
    chosen: Mapping[str, float] | None = None
    runs: Mapping[int, Run] | None = None
    why_not: str = ""


def write_equal_effort(folder: Path, output: Path | None) -> None:
    """Write the page of a folder that `make equal-effort` filled. Raises UserError if no search is there."""
    if output is not None:
        check_output(output)
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder.")
    winners = [_winner(found.folder, found.problem) for found in find_searches([folder])]
    if not winners:
        raise UserError(f"{folder}: no search is here. `make equal-effort` makes them.")
    tables = [_best(winners), *_effects_of_rna(winners)]
    write_text("\n".join(["# Equal effort\n", f"{RULE}\n", *(as_text(table, "md") for table in tables)]), output)


def _winner(folder: Path, problem: str) -> Winner:
    if problem:
        raise UserError(f"{folder}: {problem}")
    study = read_study(folder)
    about = study.user_attrs[ABOUT]
    trials, settings = study.get_trials(deepcopy=False), about["settings"]
    names = list(dict.fromkeys([*settings["objectives"], *settings["bounds"]]))
    rna = any("rna.nu" in trial.params for trial in trials)
    try:
        trial = best_trial(study, ())
    except UserError as error:
        return Winner(about["method"], rna, len(trials), names, why_not=str(error))
    place = folder.parent.parent / JUDGED
    runs = [run for run in collect([place]) if run.done and _has(run, trial.params)] if place.is_dir() else []
    return Winner(
        about["method"],
        rna,
        len(trials),
        names,
        number=trial.number,
        params=trial.params,
        chosen=trial.user_attrs[OF_TRIAL],
        runs={int(run.identity["seed"]): run for run in runs},
        why_not="" if runs else "not judged yet",
    )


def _has(run: Run, params: Mapping[str, Any]) -> bool:
    """Whether a run is of this point: an earlier winner's runs may lie beside it."""
    return all(str(_value(run.record["config"], key)) == str(value) for key, value in params.items())


def _value(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _best(winners: Sequence[Winner]) -> Table:
    rows = []
    for w in winners:
        shown = ", ".join(f"{key}={value:.4g}" for key, value in (w.params or {}).items())
        row = {
            "method": w.method,
            "RNA": "in the space" if w.rna else "none",
            "trials": w.trials,
            "winner": f"#{w.number}: {shown}" if w.params else w.why_not,
        }
        for name in w.judged:
            row[f"{name}, {FIGURES[name].unit}: chosen by"] = "–" if w.chosen is None else f"{w.chosen[name]:+.2f}"
            row[f"{name}: judged"] = _cell(_judged(w, name)) if w.runs else w.why_not
        rows.append(row)
    trials = sorted({w.trials for w in winners})
    title = f"The best of {' or '.join(map(str, trials))} trials each"
    note = "" if len(trials) == 1 else "The effort is not equal: these searches have different numbers of trials."
    return Table("equal_effort", title, note, pd.DataFrame(rows), keys=2)


def _effects_of_rna(winners: Sequence[Winner]) -> list[Table]:
    """What RNA in the space changes, of each method whose two winners were judged."""
    pairs = {(w.method, w.rna): w for w in winners if w.runs}
    rows = []
    for method in dict.fromkeys(w.method for w in winners):
        without, with_rna = pairs.get((method, False)), pairs.get((method, True))
        if without and with_rna:
            rows.append({"method": method, **{n: _cell(_difference(without, with_rna, n)) for n in with_rna.judged}})
    note = "The winner with RNA in its space less the one without, paired by seed and item."
    return [Table("effects", "What RNA in the space changes", note, pd.DataFrame(rows))] if rows else []


def _judged(winner: Winner, name: str) -> Contrast:
    return contrast([of for of in _answers(winner, name).values() if of], _items(name), _factor(name))


def _difference(without: Winner, with_rna: Winner, name: str) -> Contrast:
    a, b = _answers(without, name), _answers(with_rna, name)
    by_seed = [minus(b[seed], a[seed]) for seed in sorted(a.keys() & b.keys())]
    return contrast([of for of in by_seed if of], _items(name), _factor(name))


def _answers(winner: Winner, name: str) -> dict[int, Answers]:
    """Seed -> the figure of each item."""
    runs = winner.runs or {}
    material = gather(list(runs.values()))
    answers = {seed: _of_run(material, run, FIGURES[name]) for seed, run in sorted(runs.items())}
    for folder, why in material.problems.items():
        raise UserError(f"{folder}: {why}")
    return answers


def _of_run(material: Material, run: Run, figure: Figure) -> Answers:
    of = places(material, run)
    values = beyond_base(of, figure.role, figure.query)
    if figure.without is None:
        return values
    words = inserted_words(of.get((figure.role, figure.query, "unlearned"), []))
    return by_word(minus(values, beyond_base(of, figure.role, figure.without)), words)


def _factor(name: str) -> float:
    return 100 if FIGURES[name].measure == "acc" else 1


def _items(name: str) -> str:
    if FIGURES[name].measure == "acc":
        return "facts"
    return "texts" if FIGURES[name].without is None else "inserted words"


def _cell(effect: Contrast) -> str:
    if effect.why_not:
        return effect.why_not
    return f"{effect.difference:+.2f} ({effect.low:+.2f} .. {effect.high:+.2f}; {effect.over})"
