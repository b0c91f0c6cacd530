"""A sweep's folder: its jobs, their runs, and their submissions to SLURM.

sweep.json     the jobs and submissions
code/          on SLURM and with hydra/launcher=local, the copy of code and configuration that its jobs run
N/.hydra/      the configuration of job N, composed but not resolved
N/error.json   what went wrong in job N
logs/N.log     with hydra/launcher=local, the output of the process whose first job is N
.submitit/     on SLURM, the jobs' output

Nothing heavy is imported here: this is what a login node does, and `unlearn status`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from unlearn.config.identity import identity, paths, run_folder
from unlearn.config.schema import Config
from unlearn.config.settle import settle
from unlearn.errors import UserError, describe
from unlearn.runs.folder import RunFolder
from unlearn.storage.files import write_json
from unlearn.storage.lock import Phase, live_holder, phase_of
from unlearn.sweeps import slurm

ROOT = Path(__file__).parents[2]
ENDED = ("done", "failed", "interrupted", "missing")


@dataclass(frozen=True)
class Job:
    """A grid point: its overrides, Hydra's folder, its run's folder; or the error of its configuration."""

    number: int
    overrides: list[str]
    hydra_folder: str | None = None
    folder: str | None = None
    error: str | None = None
    attacks: list[str] = field(default_factory=list)  # that are made after the run


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
        self.jobs: dict[int, Job] = {}
        self.tasks: dict[int, str] = {}  # job -> the SLURM job or array task of its last submission
        self.launcher: dict[str, Any] | None = None  # SLURM's settings; None where the sweep ran here
        self.local: dict[str, Any] | None = None  # the settings of hydra/launcher=local, if the sweep runs so
        self.code: str | None = None  # the copy that its processes run; None if they are this one
        self.cwd = os.getcwd()
        file = self.folder / "sweep.json"
        if file.is_file():
            record = json.loads(file.read_text())
            self.jobs = {job["number"]: Job(**job) for job in record["jobs"]}
            self.tasks = {int(number): task for number, task in record["tasks"].items()}
            self.launcher, self.code, self.cwd = record["launcher"], record["code"], record["cwd"]
            self.local = record.get("local")

    @classmethod
    def begin(cls, folder: Path) -> Sweep:
        """A new sweep. A former sweep of the folder is forgotten."""
        sweep = cls(folder)
        sweep.jobs, sweep.tasks, sweep.cwd = {}, {}, os.getcwd()
        sweep.launcher = sweep.local = sweep.code = None
        return sweep

    @classmethod
    def open(cls, folder: Path) -> Sweep:
        """The sweep of a folder. Raises UserError if there is none."""
        sweep = cls(folder)
        if not sweep.jobs:
            raise UserError(f"{folder}: no sweep is here (there is no sweep.json with jobs).")
        return sweep

    def write(self) -> None:
        """Write sweep.json."""
        jobs = [asdict(job) for job in self.jobs.values()]
        how = {"launcher": self.launcher, "local": self.local, "code": self.code}
        record = {"cwd": self.cwd, **how, "jobs": jobs, "tasks": self.tasks}
        write_json(self.folder / "sweep.json", record)

    def add(self, number: int, overrides: list[str], config: Config, hydra_folder: Path) -> None:
        """Add a job that is ready to run."""
        folders = str(hydra_folder.absolute()), str(run_folder(config).absolute())
        self.jobs[number] = Job(number, overrides, *folders, attacks=config.attacks)
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

    def config(self, number: int) -> Config:
        """A job's configuration, resolved now: paths inside the package are those of the running code."""
        raw = OmegaConf.load(Path(str(self.jobs[number].hydra_folder)) / ".hydra" / "config.yaml")
        assert isinstance(raw, DictConfig)
        return settle(raw)

    def states(self, known: Mapping[int, State] | None = None) -> dict[int, State]:
        """The state of every job, from the runs' folders and SLURM's queue. Jobs that are done in `known` stay so."""
        known = known or {}
        queue = slurm.queue(self.tasks.values())
        endings = cache(lambda: slurm.endings(set(self.tasks.values()) - (queue or {}).keys()))
        return {
            number: known[number]
            if number in known and known[number].name == "done"
            else self._state(job, queue, endings)
            for number, job in self.jobs.items()
        }

    def _state(self, job: Job, queue: Mapping[str, str] | None, endings: Callable[[], Mapping[str, str]]) -> State:
        if job.folder is None:
            return State("failed", job.error or "")
        run, task = RunFolder(Path(job.folder)), self.tasks.get(job.number)
        status, times = run.record.get("status"), run.interruptions
        if status == "done" and not set(job.attacks) <= set(run.record.get("attacked", [])):
            status = "running"  # the job goes on with its attacks
        waiting = (queue or {}).get(task) if task else None
        if waiting is not None and waiting.partition(" ")[0] not in ("RUNNING", "COMPLETING"):
            return State("pending", waiting, interruptions=times)
        if (said := self._said(job, task)) is not None:
            return State("failed", said, interruptions=times)
        of_this_task = task is None or run.last_attempt.get("slurm_job") == task
        if status == "done" and (waiting is None or of_this_task):
            return State("done", interruptions=times)
        holder = live_holder(run.path)
        # If SLURM says that the task has ended, a lock of that task is out of date.
        if holder is not None and (holder.slurm_job != task or queue is None or waiting is not None or task is None):
            return State("running", str(holder), phase_of(run.path), times)
        if status == "failed" and (of_this_task or (waiting is None and queue is not None)):
            return State("failed", run.record["error"], interruptions=times)
        if waiting is not None or (task is not None and queue is None):
            return State("running", "starting" if waiting else "SLURM does not answer", interruptions=times)
        if task is not None:
            assert self.launcher is not None
            words = slurm.last_words(self.launcher["submitit_folder"], task)
            why = f"SLURM: {endings().get(task, 'ended without a result')}"
            return State("failed", f"{why}, {words}" if words else why, interruptions=times)
        if live_holder(self.folder) is not None:
            return State("pending", interruptions=times)
        return State("interrupted" if status == "running" else "missing", interruptions=times)

    def _said(self, job: Job, task: str | None) -> str | None:
        """The error of a job outside of its run's folder, in its last task, or None."""
        file = self._error_file(job)
        said = json.loads(file.read_text()) if file.is_file() else {}
        return said["error"] if said and said["slurm_job"] == task else None

    def keep_error(self, number: int, task: str | None, error: str | None) -> None:
        """Write the error of a job in a SLURM task (None: in this process); remove it if `error` is None."""
        file = self._error_file(self.jobs[number])
        if error is None:
            file.unlink(missing_ok=True)
        else:
            write_json(file, {"slurm_job": task, "error": error})

    @staticmethod
    def _error_file(job: Job) -> Path:
        return Path(str(job.hydra_folder)) / "error.json"


def finished(config: Config) -> bool:
    """Whether a configuration's run is done and began after all files that it read had come to be as they are.

    If not, the run itself decides whether their content has changed. Attacks have files of their own.
    """
    run = RunFolder(run_folder(config))
    if config.train.force or config.attacks or not run.done or run.record.get("identity") != identity(config):
        return False
    read = paths(asdict(config))
    if list(map(_inside, paths(run.record["config"]))) != list(map(_inside, read)):
        return False
    began = run.last_attempt.get("began", 0.0)
    there = [Path(path) for path in read if path is not None and Path(path).exists()]
    files = (file for path in there for file in ([path] if path.is_file() else path.rglob("*")))
    return all(max(file.stat().st_mtime, file.stat().st_ctime) < began for file in files)  # an old file moved there


def _inside(path: str | None) -> str | None:
    """A path of the package without the place of the package: a job of SLURM runs a copy, with the same files."""
    place, package, inside = (path or "").rpartition("/unlearn/")
    return package + inside if (Path(place) / "unlearn/experiment.py").is_file() else path


def failure_list(sweep: Sweep, failed: Mapping[int, str], of: int) -> str:
    """A line for each failed job, with its error."""
    lines = [f"  #{number} {sweep.label(number)}: {why}" for number, why in sorted(failed.items())]
    return "\n".join([f"{len(failed)} of {of} jobs failed:", *lines])
