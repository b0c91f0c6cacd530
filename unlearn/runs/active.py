"""A run that this process works on: its folder, the folder's lock, its tracker, and its error."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn.config.identity import identity, run_folder, run_name
from unlearn.config.schema import Config
from unlearn.errors import UserError, describe
from unlearn.models.delta import save_delta
from unlearn.records.answers import Answers
from unlearn.records.ngrams import Sizes
from unlearn.records.scores import why_not_finite
from unlearn.runs.folder import RunFolder
from unlearn.runs.takeover import find_training, take_over
from unlearn.screen import say
from unlearn.storage.hold import Lost
from unlearn.storage.lock import Busy, FolderLock, Phase
from unlearn.tracking.tracker import Tracker
from unlearn.training.checkpoint import load_checkpoint, save_checkpoint
from unlearn.training.loop import Record, peak_memory_mb
from unlearn.training.variant import Variant

if TYPE_CHECKING:
    import wandb


@dataclass
class ActiveRun:
    """A run that this process works on. `error` is the error that it failed with; other runs continue."""

    config: Config
    folder: RunFolder
    lock: FolderLock
    tracker: Tracker
    error: Exception | None = None
    _last: Record | None = None
    _phases: dict[str, tuple[int, float]] = field(default_factory=dict)  # phase -> steps done at its start, start time

    @contextmanager
    def catching_errors(self) -> Iterator[None]:
        """An error inside the block fails this run and is not raised."""
        try:
            yield
        except Exception as error:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """Record an error and end this run with the status failed."""
        try:
            self.lock.check()  # another process's files may be what is wrong
        except Lost as lost:
            error = lost
        self.error = error
        self.tracker.close(failed=True)
        if not isinstance(error, Lost):
            self.folder.fail(describe(error))

    def report(self, phase: str, done: int, total: int) -> None:
        """Write the progress. Raises Lost if another process has taken the folder over."""
        skipped, since = self._phases.setdefault(phase, (done, time.time()))
        self.lock.report(Phase(phase, done, total, skipped, since))

    def log(self, record: Record) -> None:
        """Log a training step. Raises Lost if another process has taken the folder over."""
        self._last = record
        self.report("training", record.step + 1, self.config.train.steps)
        self.tracker.log_step(record)

    def restore(self, variant: Variant) -> None:
        """Load the last checkpoint, if there is one, into a new variant, and remove later lines from the log."""
        file = self.folder.file("checkpoint.safetensors")
        if file.is_file():
            try:
                load_checkpoint(file, variant)
                say(f"{self.folder.path}: resuming after step {variant.progress.steps - 1}.")
            except UserError as error:
                say(f"{error} Starting over.")
        self.tracker.rewind(variant.progress.steps)

    def save(self, variant: Variant) -> None:
        """Save a checkpoint. If the disk is full, training continues and the last checkpoint stays."""
        try:
            self.tracker.sync()
            with self.lock.replacing(self.folder.file("checkpoint.safetensors")) as scratch:
                save_checkpoint(scratch, variant)
        except OSError as error:
            say(f"{self.folder.path}: could not save a checkpoint after step {variant.progress.steps - 1}: {error}")

    def finish_training(self, variant: Variant, frozen: Mapping[str, Any]) -> None:
        """Save the delta of a trained variant. Raises UserError if its training stopped with an error."""
        if variant.error is not None:
            raise UserError(variant.error)
        self.tracker.sync()
        self._save_weights(variant, frozen)
        self.folder.finish_training(self._training_metrics())

    def keep_weights(self, variant: Variant, frozen: Mapping[str, Any]) -> None:
        """Save the changed matrices for `eval.every`. If the disk is full, this step is not measured."""
        try:
            self._save_weights(variant, frozen)
        except OSError as error:
            say(f"{self.folder.path}: could not save the weights after step {variant.progress.steps - 1}: {error}")

    def _save_weights(self, variant: Variant, frozen: Mapping[str, Any]) -> None:
        """Save the current changed matrices; after the last step, as the delta."""
        model = self.config.model
        metadata = {"model": model.name, "layer": str(model.layer), "run": run_name(self.config)}
        file = self.folder.weights_after(variant.progress.steps, self.config.train.steps)
        with self.lock.replacing(file) as scratch:
            save_delta(scratch, variant.weights, frozen, variant.objective.state(), metadata)

    def keep_course(self, lines: list[dict[str, float]]) -> None:
        """Write course.jsonl, with a line for each measured step."""
        self.lock.write(self.folder.file("course.jsonl"), "".join(json.dumps(line) + "\n" for line in lines))

    def _training_metrics(self) -> dict[str, float]:
        """The final values of the training. Only the last three may differ between equal runs."""
        last = self._last
        assert last is not None
        return {
            "steps": last.step + 1,
            "forget_loss": last.forget_loss,
            "retain_loss": last.retain_loss,
            "seconds": last.seconds,
            "tokens_per_second": last.tokens / last.seconds,
            "peak_memory_mb": peak_memory_mb(),
        }

    def finish(self, answers: Answers, ngrams: Sizes) -> None:
        """Complete the folder, then send the results to the tracker. Errors of the tracker come too late to matter.

        A run with answers that are not finite is done, as the same would come out again, but `error` says so.
        """
        self.folder.finish(answers, ngrams)
        self._publish(answers)
        sentence = why_not_finite(answers.scores)
        if sentence is not None:
            self.error = UserError(f"{self.folder.path}: {sentence}")

    def _publish(self, answers: Answers) -> None:
        settings = self.config.tracker
        if self.folder.file("course.jsonl").is_file():
            lines = self.folder.file("course.jsonl").read_text(encoding="utf-8").splitlines()
            self.tracker.log_course([json.loads(line) for line in lines])
        self.tracker.log_scores(self.folder.trained or {}, answers.scores)
        if answers.scores:
            self.tracker.log_evaluation(answers.scores, answers.samples, questions=settings.questions)
        if settings.delta:
            about = {
                "config": asdict(self.config),
                "code": self.folder.record["code"],
                "layer": self.config.model.layer,
            }
            self.tracker.log_delta(self.folder.file("delta.safetensors"), run_name(self.config), about)


@contextmanager
def open_run(config: Config, inputs: dict[str, Any], hydra_folder: Path | None) -> Iterator[ActiveRun | None]:
    """Lock a run's folder, set its status to "running" and start its tracker. At the end it is "done" or "failed".

    Yields None if this run is finished already. A run takes over the training of a finished run that differs only in
    the evaluation. If a signal ends the process, the status stays "running", and the next attempt resumes.

    Args:
        inputs: hashes of what the run reads (`Inputs.hashes`).
        hydra_folder: the folder with Hydra's own record of the configuration, .hydra/.

    Raises:
        UserError: the folder holds another run.
        Busy: another process works on this run.
    """
    folder = RunFolder(run_folder(config))
    folder.claim(identity(config))
    if config.output_dir is not None:
        folder.check_files()
    if _finished(config, folder, inputs):
        if folder.untidy:
            with suppress(Busy):
                folder.tidy()
        yield None
        return
    with folder.locked() as lock, failing(folder):
        if _finished(config, folder, inputs):  # another process has finished it in the meantime
            yield None
            return
        anew = config.train.force and not folder.begun_by_this_job
        if not anew:
            folder.check_dtype(inputs)
        folder.start(asdict(config), identity(config), inputs, anew=anew)
        if hydra_folder is not None:
            folder.keep_hydra_files(hydra_folder)
        # Another run's training has no weights of earlier steps, which eval.every needs.
        if folder.trained is None and not config.train.force and config.eval.every is None:
            _take_training_over(config, folder, inputs)
        with Tracker(folder.path, _wandb_run(config, folder), lock.replacing) as tracker:
            yield ActiveRun(config, folder, lock, tracker)


def _take_training_over(config: Config, folder: RunFolder, inputs: dict[str, Any]) -> None:
    other = find_training(config, inputs)
    if other is not None and take_over(folder, other):
        say(f"{folder.path}: uses the training of {other.path}, which differs only in eval.")


def _finished(config: Config, folder: RunFolder, inputs: dict[str, Any]) -> bool:
    """Whether this run is in `folder`, finished. Raises UserError if it read other inputs."""
    if not folder.done or (config.train.force and not folder.begun_by_this_job):
        return False
    folder.verify(inputs)
    return True


@contextmanager
def failing(folder: RunFolder) -> Iterator[None]:
    """Write an error inside the block into run.json, unless the run has ended already, and raise it."""
    try:
        yield
    except Lost:  # the folder belongs to another process now
        raise
    except Exception as error:
        if folder.record.get("status") == "running":
            folder.fail(describe(error))
        raise


def _wandb_run(config: Config, folder: RunFolder) -> wandb.Run | None:
    """The W&B run of this folder, new or resumed. If that fails with tracker.mode=auto: a message, and None.

    In other modes, raises UserError before anything is trained.
    """
    if config.tracker.name != "wandb":
        return None
    if "wandb_id" not in folder.record:
        folder.record["wandb_id"] = uuid.uuid4().hex[:8]
        folder.write()
    from unlearn.tracking.wandb_run import start_wandb  # imports wandb, which takes long

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
            given = f"tracker.mode={tracker.mode}, project={tracker.project}, entity={tracker.entity}"
            raise UserError(
                f"{given}: cannot start a W&B run ({describe(error)}). tracker.mode=auto continues without one."
            ) from error
        say(f"{folder.path}: cannot start a W&B run ({describe(error)}). The run continues; its files are complete.")
        return None
