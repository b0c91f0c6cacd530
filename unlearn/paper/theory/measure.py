"""Measuring the paper's assumptions and theorems on a finished run.

The model runs in float32, a question at a time, with up to `batch` noisy copies of its last token; with fewer where
memory runs out.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from unlearn.errors import UserError
from unlearn.methods.rna import RNA
from unlearn.paper.theory.assumptions import FEWEST, describe
from unlearn.paper.theory.finished_run import (
    check_counterpart,
    load_suite_of,
    load_unlearned,
    questions,
    read_run,
)
from unlearn.paper.theory.predicted import observe
from unlearn.paper.theory.theorem_4_3 import theorem_4_3
from unlearn.paper.theory.theorem_5_2 import against, theorem_5_2
from unlearn.paper.theory.verdicts import THEOREMS, THEORY_FILE
from unlearn.runs.folder import RunFolder
from unlearn.runs.provenance import code_version
from unlearn.screen import console, say
from unlearn.storage.files import check_writable
from unlearn.storage.lock import FolderLock


@dataclass(frozen=True)
class Effort:
    """How much is measured: questions, draws of noise for each variance, directions of spreads, copies in memory."""

    limit: int = 200
    draws: int = 64
    directions: int = 32
    batch: int = 64
    seed: int = 0  # of noise and directions


def theory(
    folder: Path,
    counterpart: Path | None = None,
    *,
    effort: Effort = Effort(),
    injected: bool = True,
    allow_code: bool = False,
) -> dict[str, Any]:
    """Measure a finished run, and write theory.json after every part; `unlearn theory --help` explains the arguments.

    Raises UserError, before any weight is loaded, for a folder without what is needed.
    """
    RunFolder(folder).check_done()
    check_writable(folder, "The results go there.")
    with FolderLock(folder) as lock:
        return _theory(lock, counterpart, effort, injected, allow_code)


def _theory(
    lock: FolderLock, counterpart: Path | None, effort: Effort, injected: bool, allow_code: bool
) -> dict[str, Any]:
    folder = lock.folder
    run = read_run(folder, effort.limit, allow_code=allow_code)
    rm = read_run(counterpart, effort.limit, allow_code=allow_code) if counterpart is not None else None
    if rm is not None and (differing := check_counterpart(run, rm)):
        say(f"Beside RNA the two runs differ in: {', '.join(differing)}.")
    suite = load_suite_of(run)
    model, layer = load_unlearned(run), run.config.model.layer
    asked = questions(run, suite, model)
    if len(asked) < FEWEST:
        raise UserError(f"{len(asked)} questions are too few to estimate anything: at least {FEWEST} (--limit).")
    states = observe(model, layer, asked)
    results: dict[str, Any] = {
        "run": str(folder),
        "layer": layer,
        "dim": states.h_ND.shape[1],
        "questions": len(asked),
        "options": asdict(effort),
        "code": code_version(),
    }
    directions, seed = effort.directions, effort.seed
    results["assumption_4_2"] = describe(states.h_per_ND - states.h_ND, directions=directions, seed=seed)
    eta = results["assumption_4_2"]["eta"]["mean"]
    if eta == 0:
        raise UserError(
            f"{folder}: perturbed queries leave every state at layer {layer} as it is; there is no noise to measure."
        )
    how: dict[str, int] = {"draws": effort.draws, "batch": effort.batch, "seed": seed}
    file = folder / THEORY_FILE
    lock.write_json(file, results)
    if injected:
        results["theorem_4_3"] = theorem_4_3(model, layer, asked, eta, directions=directions, **how)
        lock.write_json(file, results)
        results["theorem_5_2"] = theorem_5_2(model, layer, asked, eta, **how)
        lock.write_json(file, results)
    if rm is not None:
        del model  # one at a time
        gc.collect()
        nu = RNA(run.config.rna.nu, run.config.rna.scale).std ** 2
        without = observe(load_unlearned(rm), layer, asked)
        compared = against(states, without, nu, directions=directions, seed=seed)
        results["against"] = {"run": str(counterpart), **compared}
        lock.write_json(file, results)
    return results


def show(results: Mapping[str, Any]) -> None:
    """Print a row for each assumption and theorem that was measured, with the verdict of its rule."""
    table = Table(title=f"The paper's theorems, {results['questions']} questions", box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("claim", "measured", "verdict"):
        table.add_column(heading)
    for theorem in THEOREMS:
        if theorem.part in results:
            cells = (f"{theorem.says} ({theorem.place})", theorem.measured(results), theorem.verdict([results]))
            table.add_row(*map(escape, cells))
    console.print(table)
    say(f"Files: {Path(results['run']) / THEORY_FILE}")
