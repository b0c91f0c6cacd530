"""One run on its way: its folder, held against other processes, its tracker, and where an earlier attempt left it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import wandb

from unlearn.config.identity import identity, run_folder, run_name
from unlearn.config.schema import Config
from unlearn.errors import UserError, describe
from unlearn.runs.folder import RunFolder
from unlearn.screen import say
from unlearn.storage.lock import Busy, FolderLock, Lost, Phase
from unlearn.tracking.tracker import Tracker, start_wandb
from unlearn.training.checkpoint import load_checkpoint, save_checkpoint
from unlearn.training.loop import Record, peak_memory_mb
from unlearn.training.variant import Variant

if TYPE_CHECKING:
    from unlearn.evaluate.examiner import Result


@dataclass
class Point:
    """A grid point that this process works on. `error` says why it failed, if it did; the others go on."""

    config: Config
    folder: RunFolder
    lock: FolderLock
    tracker: Tracker
    error: Exception | None = None
    _last: Record | None = None
    _phases: dict[str, tuple[int, float]] = field(default_factory=dict)  # phase -> where and when this process began it

    @contextmanager
    def alone(self) -> Iterator[None]:
        """What goes wrong inside ends this point and no other."""
        try:
            yield
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """Note that this point has failed, here and in its folder if it is still ours."""
        self.error = error
        self.tracker.close(failed=True)
        if not isinstance(error, Lost):
            self.folder.fail(describe(error))

    def report(self, phase: str, done: int, total: int) -> None:
        """Say how far the work is. Raises Lost if another process has taken the folder over."""
        skipped, since = self._phases.setdefault(phase, (done, time.time()))
        self.lock.report(Phase(phase, done, total, skipped, since))

    def log(self, record: Record) -> None:
        """A step of training."""
        self._last = record
        self.tracker.log_step(record)
        self.report("training", record.step + 1, self.config.train.steps)

    def restore(self, variant: Variant) -> None:
        """Bring a fresh variant to where the last checkpoint left it, and the log with it."""
        file = self.folder.file("checkpoint.safetensors")
        if file.is_file():
            try:
                load_checkpoint(file, variant)
                say(f"{self.folder.path}: going on after step {variant.progress.steps - 1}.")
            except UserError as error:
                say(f"{error} Starting over.")
        self.tracker.rewind(variant.progress.steps)

    def save(self, variant: Variant) -> None:
        """A checkpoint. Where the disk is full, training goes on: it has the last good one, and may need no other."""
        self.lock.check()
        try:
            self.tracker.sync()
            save_checkpoint(self.folder.file("checkpoint.safetensors"), variant)
        except OSError as error:
            say(f"{self.folder.path}: no checkpoint after step {variant.progress.steps - 1}: {error}")

    def publish(self, metrics: dict[str, float], result: Result | None, leaves: Mapping[str, Sequence[str]]) -> None:
        """Send what the run's files have to the tracker. `leaves`: the tasks of which asked ones consist."""
        settings, roles = self.config.tracker, self.config.eval.tasks
        self.tracker.log_metrics(metrics, roles)
        if result is not None:
            self.tracker.log_evaluation(metrics, roles, leaves, result.answers, questions=settings.questions)
        if settings.delta:
            about = {
                "config": asdict(self.config),
                "code": self.folder.record["code"],
                "layer": self.config.model.layer,
            }
            self.tracker.log_delta(self.folder.file("delta.safetensors"), run_name(self.config), about)

    def training_metrics(self) -> dict[str, float]:
        """Final figures of the training. Only the last three may differ between equal runs."""
        last = self._last
        assert last is not None
        return {
            "train/steps": last.step + 1,
            "train/forget_loss": last.forget_loss,
            "train/retain_loss": last.retain_loss,
            "train/seconds": last.seconds,
            "train/tokens_per_second": last.tokens / last.seconds,
            "train/peak_memory_mb": peak_memory_mb(),
        }


@contextmanager
def opened(config: Config, inputs: dict[str, Any], hydra_folder: Path | None) -> Iterator[Point | None]:
    """A point whose folder is held, says "running" and has a tracker; afterwards it says "done" or "failed".

    None if this very run is there, done. Raises UserError if another run is, and Busy while another process works on
    it. What ends the process, a signal for instance, leaves it "running": the next attempt goes on from there.
    """
    folder = RunFolder(run_folder(config))
    folder.claim(identity(config))
    if _finished(config, folder, inputs):
        if folder.untidy:
            with suppress(Busy), FolderLock(folder.path):
                folder.tidy()
        yield None
        return
    with FolderLock(folder.path) as lock, _failing(folder):
        folder.read()
        if _finished(config, folder, inputs):  # meanwhile
            yield None
            return
        anew = config.train.force and not folder.begun_by_this_job
        folder.start(asdict(config), identity(config), inputs, anew=anew)
        if hydra_folder is not None:
            folder.keep_hydra_files(hydra_folder)
        with Tracker(folder.path, _wandb_run(config, folder)) as tracker:
            yield Point(config, folder, lock, tracker)


def _finished(config: Config, folder: RunFolder, inputs: dict[str, Any]) -> bool:
    """Whether this very run is in `folder`, done. Raises UserError if it saw other inputs."""
    if not folder.done or (config.train.force and not folder.begun_by_this_job):
        return False
    folder.verify(inputs)
    return True


@contextmanager
def _failing(folder: RunFolder) -> Iterator[None]:
    """Whatever goes wrong inside is noted in the folder, unless its run has come to an end before."""
    try:
        yield
    except Lost:  # the folder is another's now
        raise
    except Exception as error:
        if folder.record.get("status") == "running":
            folder.fail(describe(error))
        raise


def _wandb_run(config: Config, folder: RunFolder) -> wandb.Run | None:
    """The W&B run of this folder, begun or continued; with tracker.mode=auto none, and a line, where that fails."""
    if config.tracker.name != "wandb":
        return None
    if "wandb_id" not in folder.record:
        folder.record["wandb_id"] = uuid.uuid4().hex[:8]
        folder.write()
    tracker = config.tracker
    tags = [*tracker.tags, config.model.name, "rna" if config.rna.nu else "no-rna"]
    try:
        return start_wandb(
            folder.path,
            run_id=folder.record["wandb_id"],
            name=run_name(config),
            config=asdict(config),
            project=tracker.project,
            entity=tracker.entity,
            mode=tracker.mode,
            group=tracker.group,
            job_type=config.method["name"],
            tags=list(dict.fromkeys(tags)),
            timeout_s=tracker.timeout_s,
        )
    except Exception as error:
        if tracker.mode != "auto":
            raise
        say(f"{folder.path}: no W&B run ({describe(error)}). Files are written as always.")
        return None
