"""The theorems among the claims: measuring them on a seed of each method, and collecting what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import JsonValue, TypeAdapter

from unlearn.analysis.collect import Run
from unlearn.errors import UserError, describe
from unlearn.paper.claims.evidence import Subject
from unlearn.paper.theory.verdicts import THEORY_FILE
from unlearn.screen import say
from unlearn.storage.schema import read_as

_THEORY: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, JsonValue])  # with NaN where nothing could be measured
DRAWS = 32  # of noise, for each question and variance


def theories(subjects: Sequence[Subject]) -> dict[str, tuple[bool, dict[str, Any]]]:
    """Of each subject's runs without RNA and with its usual nu: name -> (whether RNA trained it, its theory.json).

    Of a run with RNA, only if it was measured beside one without.
    """
    measured = {}
    for subject in subjects:
        for trained, seed, run in _runs(subject):
            with subject.evidence.material.reading(run):
                theory = _measured(run)
                if theory and (not trained or "against" in theory):
                    measured[f"{subject.method}, nu {run.identity['rna']['nu']:g}, seed {seed}"] = trained, theory
    return measured


def _runs(subject: Subject) -> list[tuple[bool, int, Run]]:
    settings = [(False, subject.plain)]
    if subject.usual_nu is not None:
        settings.append((True, subject.compared[subject.usual_nu]))
    runs_of = subject.evidence.material.runs_of
    return [(trained, seed, run) for trained, setting in settings for seed, run in runs_of(setting).items()]


def _measured(run: Run) -> dict[str, Any]:
    """What was measured of a run; maybe nothing. Raises UserError for a file that is no JSON object."""
    file = run.folder / THEORY_FILE
    return read_as(_THEORY, file) if file.exists() else {}


def measure_theorems(subjects: Sequence[Subject], limit: int, *, allow_code: bool = False) -> None:
    """Write the theory.json of each method's first seed, without RNA and beside it with RNA, where there is none."""
    from unlearn.paper.theory.measure import Effort, theory

    for subject in subjects:
        by_seed: dict[int, dict[bool, Run]] = {}
        for trained, seed, run in _runs(subject):
            by_seed.setdefault(seed, {})[trained] = run
        pair = next((runs for _, runs in sorted(by_seed.items()) if len(runs) > 1), {})
        for trained, run in pair.items():
            measured = _measured(run)
            if ("against" if trained else "theorem_5_2") in measured:  # what is measured last
                continue
            say(f"Theorems: {run.folder}")
            try:
                # Of a model with RNA only what is measured beside the other is judged; what its file has, it keeps.
                beside, injected = pair[False].folder if trained else None, not trained or "theorem_5_2" in measured
                effort = Effort(limit=limit, draws=DRAWS)
                theory(run.folder, beside, effort=effort, injected=injected, allow_code=allow_code)
            except (UserError, RuntimeError) as error:  # of CUDA, too: the others are no worse for it
                say(f"Not measured: {describe(error)}")
