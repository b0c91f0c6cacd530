"""Writing the page of the paper's claims, each with a verdict and its numbers, for any set of runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unlearn.analysis.collect import Run, collect
from unlearn.analysis.report.export import write_text
from unlearn.analysis.report.material import gather
from unlearn.analysis.report.write import check_output
from unlearn.errors import UserError
from unlearn.paper.claims.document import document
from unlearn.paper.claims.evidence import Evidence
from unlearn.paper.claims.theorems import measure_theorems
from unlearn.paper.claims.tokens import measure_terms
from unlearn.screen import say


def write_claims(
    folders: Sequence[Path],
    output: Path | None,
    *,
    theory: bool = False,
    terms: bool = False,
    limit: int = 100,
    title: str = "The paper's claims",
    preface: Path | None = None,
    allow_code: bool = False,
) -> None:
    """Write the page of verdicts on all runs in these folders; `unlearn claims --help` explains the arguments.

    Raises UserError for folders without runs that can be judged.
    """
    if output is not None:
        check_output(output)
    beginning = preface.read_text(encoding="utf-8") if preface else ""
    material = gather(_comparable(collect(folders)))
    evidence = Evidence(material)
    if theory:
        measure_theorems(evidence.subjects, limit, allow_code=allow_code)
    if terms:
        measure_terms(evidence.subjects, allow_code=allow_code)
    page = document(evidence, title, beginning)
    for warning in [*material.warnings, *(f"{run}: {why}" for run, why in material.problems.items())]:
        say(f"Warning: {warning}")
    write_text(page, output)
    if output is not None:
        say(f"{output}: {len(material.runs)} runs")


def _comparable(runs: Sequence[Run]) -> list[Run]:
    """The runs but those of adopted checkpoints, whose settings are known only as far as their users say.

    Raises UserError if there are no others.
    """
    trained = [run for run in runs if not run.adopted]
    if not trained:
        raise UserError("all runs here are adopted checkpoints. Claims are judged on runs that differ in one setting.")
    if len(trained) < len(runs):
        say(f"Left out: {len(runs) - len(trained)} adopted checkpoints. Claims are of runs that differ in one setting.")
    return trained
