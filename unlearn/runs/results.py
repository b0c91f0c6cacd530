"""Evaluating runs together: after their training, and as they were during it."""

from __future__ import annotations

from pathlib import Path

from unlearn.config.schema import Config
from unlearn.errors import describe
from unlearn.evaluation.evaluator import Evaluator, Unlearned
from unlearn.records.answers import Answers
from unlearn.runs.active import ActiveRun
from unlearn.screen import say
from unlearn.tracking.wandb_tables import role_figures


def results_of(runs: list[ActiveRun], evaluator: Evaluator, steps: int | None = None) -> dict[Path, Answers]:
    """The results after `steps` steps (default: the last), by the folders of the runs. Runs that fail are left out."""
    folders = [active.folder for active in runs]
    models = []
    for active in runs:
        last = active.config.train.steps
        partial = active.folder.file("partial" if steps is None else f"partial/step-{steps:06d}")
        models.append(Unlearned(active.folder.weights_after(steps or last, last), partial, active.lock, active.report))
    try:
        results = evaluator.evaluate(models)
        return {folder.path: result for folder, result in zip(folders, results, strict=True)}
    except Exception as error:
        if len(runs) == 1:
            runs[0].fail(error)
            return {}
        # One run may have caused the error. The journals keep what was computed.
        say(f"Evaluating the runs together failed ({describe(error)}). They are evaluated one after another.")
    return {path: result for active in runs for path, result in results_of([active], evaluator, steps).items()}


def measure_course(runs: list[ActiveRun], shared: Config, evaluator: Evaluator) -> None:
    """Measure the runs' models after every `eval.every` steps and write course.jsonl.

    Runs whose course an earlier attempt has measured are left out.
    """
    last = shared.train.steps
    assert shared.eval.every is not None
    runs = [active for active in runs if not active.folder.file("course.jsonl").is_file()]
    courses: dict[Path, list[dict[str, float]]] = {active.folder.path: [] for active in runs}
    for steps in [*range(shared.eval.every, last, shared.eval.every), last]:
        measured = [a for a in runs if a.error is None and a.folder.weights_after(steps, last).is_file()]
        for path, answers in (results_of(measured, evaluator, steps) if measured else {}).items():
            if not courses[path]:
                courses[path].append({"step": 0, **role_figures(answers.scores, "base")})
            courses[path].append({"step": steps, **role_figures(answers.scores)})
    for active in runs:
        if active.error is None:
            with active.catching_errors():
                active.keep_course(courses[active.folder.path])
