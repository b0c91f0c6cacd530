"""Finding runs in folders of runs, of sweeps, or any folder above them. Nothing is dropped silently.

Failed, unfinished, missing and corrupt runs are in the list, too, with their status and the reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from unlearn.config.identity import identity
from unlearn.errors import UserError, describe
from unlearn.runs.evaluations import asked, content, evaluations, roles_of
from unlearn.storage.files import read_object
from unlearn.sweeps.sweep import Job, Sweep

REQUIRED: dict[str, type | tuple[type, ...]] = {
    "identity.model.name": str,
    "identity.method.name": str,
    "identity.rna.nu": (int, float),
    "identity.seed": int,
    "identity.eval.tasks": dict,
    "identity.eval.queries": list,
    "inputs": dict,
}  # what a run.json must have, and of which type
DESCRIBED = 200  # at most so many jobs that never began have their configuration composed, which takes a while


@dataclass(frozen=True)
class Run:
    """A run that was found. `status` is done, failed, unfinished, missing or corrupt; only done runs have metrics."""

    folder: Path
    status: str
    why: str = ""
    record: dict[str, Any] = field(default_factory=dict)  # run.json
    metrics: dict[str, float] = field(default_factory=dict)  # metrics.json

    @property
    def done(self) -> bool:
        """Whether the run can be shown."""
        return self.status == "done"

    @property
    def identity(self) -> dict[str, Any]:
        """The run's identity; empty if it is not known."""
        return self.record.get("identity", {})

    @property
    def roles(self) -> dict[str, list[str]]:
        """Its tasks by role, each role as the first evaluation that asked it has it: later ones may add roles."""
        found: dict[str, list[str]] = {}
        for evaluation in self._evaluations:
            for role, tasks in roles_of(evaluation).items():
                found[role] = found.get(role) or tasks
        return found

    @property
    def queries(self) -> list[str]:
        """The kinds of query that were asked."""
        return list(dict.fromkeys(query for evaluation in self._evaluations for query in evaluation["queries"]))

    @property
    def question_set(self) -> dict[str, Any]:
        """What determines the content of its perturbed questions or, if it had none, of the default ones."""
        if not self.identity:
            return {}
        return next((found for query in ("perturbed", "default") if (found := asked(self.record, query))), {})

    @property
    def content(self) -> str | None:
        """The hash of its default questions and their right answers; None if it is not known."""
        return content(self.record, "default") if self.identity else None

    @property
    def own_roles(self) -> dict[str, list[str]]:
        """The tasks by role of its first evaluation that asked anything."""
        return next((roles for evaluation in self._evaluations if (roles := roles_of(evaluation))), {})

    @property
    def _evaluations(self) -> list[dict[str, Any]]:
        return evaluations(self.record)


def collect(folders: Sequence[Path]) -> list[Run]:
    """The runs of all these folders, each once, in the order of their paths. Raises UserError if there are none."""
    found: dict[Path, Run] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: there is no such folder.")
        runs = list(_below(folder))
        if not runs:
            raise UserError(f"{folder}: no run is here (no run.json) and no sweep (no sweep.json), at any depth.")
        for run in runs:
            found.setdefault(run.folder.resolve(), run)
    return [found[path] for path in sorted(found)]


def _below(top: Path) -> Iterator[Run]:
    """The runs in and below a folder, links followed; what is below a run or a sweep is theirs."""
    folders, seen = [top], set()
    while folders:
        folder = folders.pop()
        if folder.resolve() in seen:
            continue
        seen.add(folder.resolve())
        if (folder / "run.json").is_file():
            yield read_run(folder)
        elif (folder / "sweep.json").is_file():
            yield from _of_sweep(folder)
        else:
            try:
                folders += sorted((path for path in folder.iterdir() if path.is_dir()), reverse=True)
            except OSError as error:
                yield Run(folder, "corrupt", f"cannot be read: {error}")


def read_run(folder: Path) -> Run:
    """The run of a folder that has a run.json."""
    try:
        record = read_object(folder / "run.json")
        wrong = [key for key, kind in REQUIRED.items() if not isinstance(_at(record, key), kind)]
        if wrong:
            return Run(folder, "corrupt", f"run.json: missing or of a wrong type: {', '.join(wrong)}")
        if record.get("status") == "failed":
            return Run(folder, "failed", str(record.get("error", "")), record)
        if record.get("status") != "done":
            return Run(folder, "unfinished", "not finished, or interrupted", record)
        metrics = read_object(folder / "metrics.json")
        wrong = [key for key, value in metrics.items() if not isinstance(value, (int, float))]
        if wrong:
            return Run(folder, "corrupt", f"metrics.json: not a number: {', '.join(wrong[:5])}", record)
        return Run(folder, "done", "", record, {k: v for k, v in metrics.items() if math.isfinite(v)})
    except UserError as error:
        return Run(folder, "corrupt", str(error))


def _at(tree: Any, key: str) -> Any:
    """The value of a dotted key, or None."""
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def _of_sweep(folder: Path) -> Iterator[Run]:
    """The runs of a sweep's jobs, those too that were never begun."""
    try:
        sweep = Sweep(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        yield Run(folder, "corrupt", f"sweep.json: {type(error).__name__}: {error}")
        return
    never = 0
    for job in sweep.jobs.values():
        run = _run_folder(sweep, job)
        if run is not None and (run / "run.json").is_file():
            yield read_run(run)
        else:
            never += 1
            yield _never_begun(sweep, job, run, described=never <= DESCRIBED)


def _run_folder(sweep: Sweep, job: Job) -> Path | None:
    """Where a job's run is: at its recorded path or, where the whole output folder was moved, beside the sweep."""
    if job.folder is None:
        return None
    recorded = Path(job.folder)
    moved = [parent / "runs" / recorded.name for parent in sweep.folder.parents]
    return recorded if recorded.is_dir() else next((path for path in moved if path.is_dir()), recorded)


def _never_begun(sweep: Sweep, job: Job, folder: Path | None, *, described: bool) -> Run:
    """A job without a run.json: its configuration, if wanted and as far as it can be known, and what is said of it."""
    status, why, record = "missing", "never begun", {}
    try:
        if job.error is not None:
            status, why = "failed", job.error
        elif (error := sweep.folder / str(job.number) / "error.json").is_file():
            status, why = "failed", str(read_object(error).get("error"))
        if described and job.error is None:
            config = sweep.config(job.number)
            record = {"config": asdict(config), "identity": identity(config)}
    except Exception as problem:  # whatever is wrong with files and configurations that were never run
        why += f" (more cannot be read: {describe(problem)})"
    return Run(folder or sweep.folder / str(job.number), status, f"{sweep.label(job.number)}: {why}", record)
