"""Find runs in folders: of a run, of a sweep, or anything that holds such folders. Nothing is dropped silently.

Whatever cannot be used, a failed, unfinished, missing or corrupt run, is in the list, too, with its status and why.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from unlearn.errors import UserError, describe
from unlearn.identity import identity
from unlearn.run_folder import asked
from unlearn.sweep import Job, Sweep

REQUIRED = (
    "status",
    "identity.model.name",
    "identity.method.name",
    "identity.eval.tasks",
    "identity.eval.queries",
    "inputs",
)


@dataclass(frozen=True)
class Run:
    """What a run left. `status` is done, failed, unfinished, missing or corrupt; only done ones have metrics."""

    folder: Path
    status: str
    why: str = ""
    record: dict[str, Any] = field(default_factory=dict)  # run.json
    metrics: dict[str, float] = field(default_factory=dict)  # metrics.json

    @property
    def done(self) -> bool:
        """Whether it can be shown."""
        return self.status == "done"

    @property
    def identity(self) -> dict[str, Any]:
        """What determines its result; empty if nothing is known of it."""
        return self.record.get("identity", {})

    @property
    def roles(self) -> dict[str, list[str]]:
        """Its tasks by role, those of later evaluations included."""
        found: dict[str, list[str]] = {}
        for evaluation in self._evaluations:
            for role, tasks in evaluation["tasks"].items():
                known = found.setdefault(role, [])
                known += [task for task in tasks if task not in known]
        return found

    @property
    def queries(self) -> list[str]:
        """The kinds of query that it was asked."""
        return list(dict.fromkeys(query for evaluation in self._evaluations for query in evaluation["queries"]))

    @property
    def question_set(self) -> dict[str, Any]:
        """What determines the content of its perturbed questions or, if it had none, of the default ones."""
        return next((found for query in ("perturbed", "default") if (found := asked(self.record, query))), {})

    @property
    def _evaluations(self) -> list[dict[str, Any]]:
        return [self.record["identity"]["eval"], *self.record.get("evaluations", [])]


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


def _below(folder: Path) -> Iterator[Run]:
    """The runs in and below a folder; what is below a run or a sweep is theirs."""
    if (folder / "run.json").is_file():
        yield read_run(folder)
    elif (folder / "sweep.json").is_file():
        yield from _of_sweep(folder)
    else:
        with os.scandir(folder) as entries:
            below = sorted(Path(e.path) for e in entries if e.is_dir(follow_symlinks=False))
        for path in below:
            yield from _below(path)


def read_run(folder: Path) -> Run:
    """The run of a folder that has a run.json."""
    try:
        record = _object(folder / "run.json")
        lacking = [key for key in REQUIRED if not _has(record, key)]
        if lacking:
            return Run(folder, "corrupt", f"run.json lacks {', '.join(lacking)}")
        if record["status"] == "failed":
            return Run(folder, "failed", str(record.get("error", "")), record)
        if record["status"] != "done":
            return Run(folder, "unfinished", "not finished, or interrupted", record)
        return Run(folder, "done", "", record, _object(folder / "metrics.json"))
    except (OSError, ValueError) as error:
        return Run(folder, "corrupt", f"{type(error).__name__}: {error}")


def _has(tree: Any, key: str) -> bool:
    """Whether a dotted key is there."""
    first, _, rest = key.partition(".")
    return isinstance(tree, dict) and first in tree and (not rest or _has(tree[first], rest))


def _object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file.name}: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file.name}: not a JSON object")
    return content


def _of_sweep(folder: Path) -> Iterator[Run]:
    """The runs of a sweep's jobs, those too that were never begun."""
    try:
        sweep = Sweep(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield Run(folder, "corrupt", f"sweep.json: {type(error).__name__}: {error}")
        return
    for job in sweep.jobs.values():
        run = _run_folder(sweep, job)
        if run is not None and (run / "run.json").is_file():
            yield read_run(run)
        else:
            yield _never_begun(sweep, job, run)


def _run_folder(sweep: Sweep, job: Job) -> Path | None:
    """Where a job's run is: at its recorded path or, where the whole output folder was moved, beside the sweep."""
    if job.folder is None:
        return None
    recorded = Path(job.folder)
    moved = [parent / "runs" / recorded.name for parent in sweep.folder.parents]
    return recorded if recorded.is_dir() else next((path for path in moved if path.is_dir()), recorded)


def _never_begun(sweep: Sweep, job: Job, folder: Path | None) -> Run:
    """A job without a run.json: its configuration, as far as it is known."""
    error = sweep.folder / str(job.number) / "error.json"
    status, why = ("failed", job.error) if job.error else ("missing", "never begun")
    if error.is_file():
        status, why = "failed", str(_object(error).get("error"))
    record: dict[str, Any] = {}
    try:
        config = sweep.config(job.number)
        record = {"config": asdict(config), "identity": identity(config)}
    except Exception as problem:  # whatever is wrong with a configuration that was never run
        why = f"{why} ({describe(problem)})" if job.error is None else why
    return Run(folder or sweep.folder / str(job.number), status, f"{sweep.label(job.number)}: {why}", record)


def warnings(runs: Iterable[Run]) -> list[str]:
    """What a reader has to know before runs are compared: mixed models, data, questions or code."""
    done = [run for run in runs if run.done]
    seen = {
        "models": {f"{r.identity['model']['name']} ({r.record['inputs'].get('model', '')[:10]})" for r in done},
        "training data": {_short(r.record["inputs"].get("data")) for r in done},
        "question sets": {_short(r.question_set) for r in done},
        "code versions": {str((r.record.get("code") or {}).get("commit") or "unknown")[:10] for r in done},
        "versions of the results": {str(r.identity.get("results_version")) for r in done},
    }
    found = [
        f"These runs are of {len(v)} {what}: {', '.join(sorted(v)[:8])}." for what, v in seen.items() if len(v) > 1
    ]
    changed = sum(bool((r.record.get("code") or {}).get("changed")) for r in done)
    if changed:
        found.append(f"{changed} of {len(done)} runs were made by code with uncommitted changes.")
    return found


def _short(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
