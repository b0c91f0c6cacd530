"""Measuring the paper's Assumption 4.2 and Theorems 4.3 and 5.2 on a finished run.

The model runs in float32, a question at a time, with up to `batch` noisy copies of its last token; with fewer where
memory runs out.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

from unlearn.errors import UserError
from unlearn.methods.rna import standard_deviation
from unlearn.paper.theory.counterpart import against
from unlearn.paper.theory.differences import FEWEST, describe
from unlearn.paper.theory.output import theorem_4_3
from unlearn.paper.theory.predicted import observe
from unlearn.paper.theory.rejection import theorem_5_2
from unlearn.paper.theory.run import (
    check_counterpart,
    check_delta,
    load_suite_of,
    load_unlearned,
    questions,
    read_run,
)
from unlearn.paper.theory.tables import show
from unlearn.runs.provenance import code_version
from unlearn.screen import say
from unlearn.storage.files import write_json


def result_file(folder: Path, query: str, role: str) -> Path:
    """The file of the results: theory.json for perturbed queries of the retain role, as in the paper."""
    usual = (query, role) == ("perturbed", "retain")
    return folder / ("theory.json" if usual else f"theory-{role}-{query}.json")


def theory(
    folder: Path,
    counterpart: Path | None = None,
    *,
    query: str = "perturbed",
    role: str = "retain",
    limit: int = 200,
    draws: int = 64,
    directions: int = 32,
    batch: int = 64,
    seed: int = 0,
    injected: bool = True,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Measure a finished run, and write `result_file` after every part; `unlearn theory --help` explains the arguments.

    Raises UserError, before any weight is loaded, for a folder without what is needed.
    """
    run = read_run(folder, query, role, limit, trust_remote_code=trust_remote_code)
    check_delta(run)
    rm = None
    if counterpart is not None:
        rm = read_run(counterpart, query, role, limit, trust_remote_code=trust_remote_code)
    if rm is not None:
        check_delta(rm)
        if differing := check_counterpart(run, rm):
            say(f"Beside RNA the two runs differ in: {', '.join(differing)}.")
    suite = load_suite_of(run)
    model, layer = load_unlearned(run), run.config.model.layer
    asked = questions(run, suite, model)
    if len(asked) < FEWEST:
        raise UserError(f"{len(asked)} questions are too few to estimate anything: at least {FEWEST} (--limit).")
    states = observe(model, layer, asked)
    found: dict[str, Any] = {
        "run": str(folder),
        "query": query,
        "role": role,
        "layer": layer,
        "dim": states.h_ND.shape[1],
        "questions": len(asked),
        "options": {"limit": limit, "draws": draws, "directions": directions, "batch": batch, "seed": seed},
        "code": code_version(),
    }
    found["assumption_4_2"] = describe(states.h_per_ND - states.h_ND, states.h_ND, directions=directions, seed=seed)
    eta = found["assumption_4_2"]["eta"]["mean"]
    if eta == 0:
        raise UserError(
            f"{folder}: {query} queries leave every state at layer {layer} as it is; there is no noise to measure."
        )
    how: dict[str, int] = {"draws": draws, "batch": batch, "seed": seed}
    file = result_file(folder, query, role)
    write_json(file, found)
    if injected:
        found["theorem_4_3"] = theorem_4_3(model, layer, asked, states, eta, directions=directions, **how)
        write_json(file, found)
        found["theorem_5_2"] = theorem_5_2(model, layer, asked, eta, **how)
        write_json(file, found)
    if rm is not None:
        del model  # one at a time
        gc.collect()
        nu = standard_deviation(run.config.rna.nu, run.config.rna.scale) ** 2
        without = observe(load_unlearned(rm), layer, asked)
        found["against"] = {"run": str(counterpart), **against(states, without, nu, directions=directions, seed=seed)}
        write_json(file, found)
    return found


def measure_and_show(folder: Path, counterpart: Path | None, *, query: str, role: str, **options: Any) -> None:
    """Measure a finished run, and print the tables and the name of the file."""
    show(theory(folder, counterpart, query=query, role=role, **options))
    say(f"Files: {result_file(folder, query, role)}")
