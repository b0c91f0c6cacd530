"""A sweep's folder: its jobs, their runs, and their submissions to SLURM.

sweep.json     the jobs and submissions
code/          on SLURM and with hydra/launcher=local, the copy of code and configuration that its jobs run
N/config.json  the configuration of job N
N/.hydra/      Hydra's own record of it, which is not read
N/error.json   what went wrong in job N
logs/N.log     with hydra/launcher=local, the output of the process whose first job is N
.submitit/     on SLURM, the jobs' output

Nothing heavy is imported here: this is what a login node does, and `unlearn status`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from unlearn.config.identity import run_folder
from unlearn.config.recorded import recorded
from unlearn.config.schema import Config
from unlearn.config.settle import settle
from unlearn.errors import UserError, describe
from unlearn.runs.folder import RunFolder
from unlearn.storage.files import write_json
from unlearn.storage.lock import Phase, live_holder, phase_of
from unlearn.storage.schema import TREE, Inside, Name, Tree, check_links, read_as
from unlearn.sweeps import slurm

ENDED = ("done", "failed", "interrupted", "missing")


@dataclass(frozen=True)
class Job:
    """A grid point: its overrides, Hydra's folder, its run's folder; or the error of its configuration."""

    number: int
    overrides: list[str]
    hydra_folder: Inside | None = None  # below the sweep's
    folder: str | None = None
    error: str | None = None
    attacks: list[str] = field(default_factory=list)  # that are made after the run


class _Record(TypedDict):
    """sweep.json: see `Sweep`."""

    cwd: str
    launcher: Literal["packed", "local", "slurm"]
    settings: Tree
    code: Name | None
    jobs: list[Job]
    tasks: dict[int, Annotated[str, Field(pattern=r"^\d+(_\d+)?$")]]


class _Error(TypedDict):
    """error.json of a job."""

    slurm_job: str | None
    error: str
    time: float


_RECORD: TypeAdapter[Any] = TypeAdapter(_Record)
_ERROR: TypeAdapter[Any] = TypeAdapter(_Error)


@dataclass(frozen=True)
class State:
    """A job's state: pending, running, done, failed, interrupted, or missing (never started)."""

    name: str
    detail: str = ""
    phase: Phase | None = None
    interruptions: int = 0

    @property
    def ended(self) -> bool:
        """Whether the job will not go on by itself."""
        return self.name in ENDED


class Sweep:
    """A sweep's folder and its sweep.json."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.cwd = os.getcwd()
        self.launcher = "packed"  # or local, slurm
        self.settings: dict[str, Any] = {}  # of the launcher, for a retry
        self.code: str | None = None  # the name of the copy that its processes run; None if they are this one
        self.jobs: dict[int, Job] = {}
        self.tasks: dict[int, str] = {}  # job -> the SLURM job or array task of its last submission

    @classmethod
    def open(cls, folder: Path) -> Sweep:
        """The sweep of a folder. Raises UserError if there is none, and for a record of another form."""
        file = folder / "sweep.json"
        if not file.exists():
            raise UserError(f"{folder}: this is no sweep's folder (there is no sweep.json).")
        check_links(folder)
        try:
            record = read_as(_RECORD, file)
        except UserError as error:
            raise UserError(
                f"{error}. If an earlier version wrote it, start the sweep again: it keeps its runs."
            ) from None
        sweep = cls(folder)
        sweep.cwd, sweep.launcher, sweep.settings = record["cwd"], record["launcher"], record["settings"]
        sweep.code, sweep.tasks = record["code"], record["tasks"]
        sweep.jobs = {job.number: job for job in record["jobs"]}
        if not sweep.jobs:
            raise UserError(f"{file}: there are no jobs in it.")
        return sweep

    def write(self) -> None:
        """Write sweep.json."""
        record = {
            "cwd": self.cwd,
            "launcher": self.launcher,
            "settings": self.settings,
            "code": self.code,
            "jobs": [asdict(job) for job in self.jobs.values()],
            "tasks": self.tasks,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "sweep.json", record)

    def add(self, number: int, overrides: list[str], config: Config, hydra_folder: Path) -> None:
        """Add a job that is ready to run. Raises UserError if Hydra's folder of it is not below the sweep's."""
        inside = os.path.relpath(hydra_folder, self.folder)
        if inside.startswith(os.pardir):
            raise UserError(f"hydra.sweep.subdir: {hydra_folder} is not below the sweep's folder, {self.folder}.")
        self.jobs[number] = Job(number, overrides, inside, str(run_folder(config).absolute()), attacks=config.attacks)
        self.home(number).mkdir(parents=True, exist_ok=True)
        write_json(self.home(number) / "config.json", asdict(config))
        self.keep_error(number, None, None)  # of a former sweep in this folder

    def add_failed(self, number: int, overrides: list[str], error: BaseException) -> None:
        """Add a job with a wrong configuration."""
        self.jobs[number] = Job(number, overrides, error=describe(error))

    @cached_property
    def common(self) -> list[str]:
        """The overrides that all jobs of a complete sweep have; none if there is one job."""
        first, *others = self.jobs.values()
        return [o for o in first.overrides if others and all(o in other.overrides for other in others)]

    def label(self, number: int) -> str:
        """The overrides of a job that not all jobs have."""
        return " ".join(o for o in self.jobs[number].overrides if o not in self.common)

    def home(self, number: int) -> Path:
        """The folder of a job below the sweep's, with its configuration and its error."""
        return self.folder / (self.jobs[number].hydra_folder or str(number))

    def config(self, number: int, *, trained: bool = False) -> Config:
        """A job's configuration. Paths inside the package are those of the running code. `trained`: see `settle`."""
        file = self.home(number) / "config.json"
        return settle(recorded(read_as(TREE, file), file), trained=trained)

    def states(self, before: Mapping[int, State] | None = None) -> dict[int, State]:
        """The state of every job, from the runs' folders and SLURM's queue. Jobs that were done `before` stay so."""
        states = {n: state for n, state in (before or {}).items() if state.name == "done"}
        queue = slurm.queue(self.tasks.values())
        endings = cache(lambda: slurm.endings(set(self.tasks.values()) - (queue or {}).keys()))
        return {n: states.get(n) or self._state(job, queue, endings) for n, job in self.jobs.items()}

    def _state(self, job: Job, queue: Mapping[str, str] | None, endings: Callable[[], Mapping[str, str]]) -> State:
        if job.folder is None:
            return State("failed", job.error or "")
        try:
            run, task = RunFolder(Path(job.folder)), self.tasks.get(job.number)
            if task is None:
                name, detail = self._state_here(job, run)
            else:
                name, detail = self._state_on_slurm(job, run, task, queue, endings)
        except UserError as error:  # a damaged file
            return State("failed", str(error))
        phase = phase_of(run.path) if name == "running" else None
        return State(name, detail, phase, run.interruptions)

    def _state_here(self, job: Job, run: RunFolder) -> tuple[str, str]:
        """State and detail of a job that no SLURM task was made for."""
        if (error := self._error(job, run, None)) is not None:
            return "failed", error
        if _complete(job, run):
            return "done", ""
        if (holder := live_holder(run.path)) is not None:
            return "running", str(holder)
        if run.record.get("status") == "failed":
            return "failed", run.record.get("error", "")
        if live_holder(self.folder) is not None:
            return "pending", ""
        return ("interrupted" if run.record.get("status") in ("running", "done") else "missing"), ""

    def _state_on_slurm(
        self, job: Job, run: RunFolder, task: str, queue: Mapping[str, str] | None, endings: Callable[[], Mapping]
    ) -> tuple[str, str]:
        """State and detail of a job's SLURM task, as far as SLURM answers."""
        queued = (queue or {}).get(task)
        if queued is not None and queued.partition(" ")[0] not in ("RUNNING", "COMPLETING"):
            return "pending", queued
        if (error := self._error(job, run, task)) is not None:
            return "failed", error
        of_this_task = run.last_attempt.get("slurm_job") == task
        if _complete(job, run) and (queued is None or of_this_task):
            return "done", ""
        task_has_ended = queue is not None and queued is None
        holder = live_holder(run.path)
        if holder is not None and not (task_has_ended and holder.slurm_job == task):  # then the lock is out of date
            return "running", str(holder)
        if run.record.get("status") == "failed" and (of_this_task or task_has_ended):
            return "failed", run.record.get("error", "")
        if not task_has_ended:
            return "running", "SLURM does not answer" if queued is None else "starting"
        reason = f"SLURM: {endings().get(task, 'ended without a result')}"
        last_line = slurm.last_line(str(self.settings.get("submitit_folder")), task)
        return "failed", f"{reason}, {last_line}" if last_line else reason

    def _error(self, job: Job, run: RunFolder, task: str | None) -> str | None:
        """The error of a job's last task that is not in its run's folder. None if the run was completed after it."""
        record = self.error_of(job.number)
        if record is None:
            return None
        completed_since = _complete(job, run) and run.last_attempt.get("until", 0) > record["time"]
        return None if record["slurm_job"] != task or completed_since else record["error"]

    def error_of(self, number: int) -> dict[str, Any] | None:
        """The error.json of a job, if it has one. Raises UserError if it is damaged."""
        file = self.home(number) / "error.json"
        return read_as(_ERROR, file) if file.exists() else None

    def keep_error(self, number: int, task: str | None, error: str | None) -> None:
        """Write the error of a job in a SLURM task (None: in this process); remove it if `error` is None."""
        file = self.home(number) / "error.json"
        if error is None:
            file.unlink(missing_ok=True)
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, {"slurm_job": task, "error": error, "time": time.time()})


def _complete(job: Job, run: RunFolder) -> bool:
    """Whether the run is done, and the attacks that the job makes after it."""
    return run.done and set(job.attacks) <= set(run.record.get("attacked", []))


def failure_list(sweep: Sweep, errors: Mapping[int, str], jobs: int) -> str:
    """A line for each error, with the jobs that have it: an error that all jobs have is shown once."""
    numbers: dict[str, list[int]] = {}
    for number, error in sorted(errors.items()):
        numbers.setdefault(error, []).append(number)
    lines = []
    for error, alike in numbers.items():
        label = sweep.label(alike[0]) if len(alike) == 1 else f"and {len(alike) - 1} more"
        lines.append(f"  #{alike[0]} {label}: {error}")
    return "\n".join([f"{len(errors)} of {jobs} jobs failed:", *lines])
