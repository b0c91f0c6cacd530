"""Tracking a run: train.jsonl in its folder and, if wanted, Weights & Biases.

A tracker is a context manager. It always finishes its W&B run, so that the runs of a sweep do not mix. W&B errors never
stop a run; they are printed, and the run's files have everything. Offline, the W&B folder always holds one complete
upload: each attempt at a run writes all steps of train.jsonl into a new one and removes the earlier ones.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from operator import itemgetter
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from unlearn.errors import describe
from unlearn.records.samples import Sample
from unlearn.records.scores import Score, flat, nested
from unlearn.screen import say
from unlearn.storage.files import replacing
from unlearn.tracking.wandb_tables import (
    EVALUATION,
    SUMMARIES,
    TEXTS,
    evaluation_rows,
    question_rows,
    role_figures,
    text_rows,
)

if TYPE_CHECKING:  # this is imported where torch is not
    import wandb

    from unlearn.training.loop import Record

KINDS: dict[str, Callable[[list[float]], float]] = {"min": min, "max": max, "mean": fmean, "last": itemgetter(-1)}


class Tracker:
    """Writes train.jsonl, and sends the same lines to W&B if there is a W&B run.

    Each attempt at a run writes a new file, which begins with the lines of the earlier ones. So a process that has lost
    the folder can add nothing to the file of the one that has taken it over.

    Args:
        replace: replaces a file of the folder (`Hold.replacing`).
    """

    def __init__(
        self,
        folder: Path,
        wandb_run: wandb.Run | None = None,
        replace: Callable[[Path], AbstractContextManager[Path]] = replacing,
    ) -> None:
        self._file, self._replace = folder / "train.jsonl", replace
        self._lines = self._begin(self._read())
        self._wandb = wandb_run
        self._sent = -1  # the last step that this W&B run has
        self._failed: set[str] = set()  # kinds of data for which an error of W&B was reported
        if wandb_run is not None:
            with self._surviving("the steps of earlier attempts"):
                if wandb_run.resumed:  # only online: an offline run always begins empty
                    self._sent = wandb_run.summary.get("train/step", -1)
                for line in self._read():
                    self._send_step(line)
                remove_earlier_attempts(folder, wandb_run)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._wandb is not None and error is not None and not isinstance(error, Exception):
            with self._surviving("that this run will go on"):
                self._wandb.mark_preempting()  # after a signal, another attempt will resume this run
        self.close(failed=error is not None)

    @property
    def address(self) -> str | None:
        """The run's address in W&B, or how to upload it."""
        if self._wandb is None:
            return None
        if self._wandb.offline:
            return f"offline; upload it with: wandb sync {Path(self._wandb.dir).parent}"
        return self._wandb.url

    def _read(self) -> list[dict[str, Any]]:
        """The complete lines of train.jsonl."""
        lines: list[dict[str, Any]] = []
        if not self._file.is_file():
            return lines
        for line in self._file.read_text(encoding="utf-8").split("\n"):
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                break  # the end, or an incomplete line of a killed attempt
        return lines

    def rewind(self, steps: int) -> None:
        """Keep the log of the first `steps` steps. Later steps will be repeated and logged again."""
        kept = [line for line in self._read() if line["step"] < steps]
        self._lines.close()
        self._lines = self._begin(kept)

    def _begin(self, lines: Sequence[Mapping[str, Any]]) -> TextIO:
        """Replace train.jsonl by a file with these lines, and return it, open for more."""
        with self._replace(self._file) as scratch:
            stream = scratch.open("w", encoding="utf-8")
            stream.writelines(json.dumps(line) + "\n" for line in lines)
            stream.flush()
        return stream

    def log_step(self, record: Record) -> None:
        """Write a line of train.jsonl, flush it, and send it to W&B's curves over `train/step`."""
        line = record.line()
        self._lines.write(json.dumps(line) + "\n")
        self._lines.flush()
        with self._surviving("a step"):
            self._send_step(line)

    def _send_step(self, line: Mapping[str, Any]) -> None:
        """Send a step unless the W&B run has it already."""
        if self._wandb is not None and line["step"] > self._sent:
            self._wandb.log({f"train/{name}": value for name, value in line.items()})
            self._sent = line["step"]

    def sync(self) -> None:
        """Write all lines to disk. Call it before a checkpoint, which needs the log up to its step."""
        os.fsync(self._lines.fileno())

    def log_course(self, lines: Sequence[Mapping[str, float]]) -> None:
        """Send measures of the model during its training to W&B's curves course/* over `course/step`."""
        if self._wandb is not None:
            with self._surviving("the course of the training"):
                self._wandb.define_metric("course/step", hidden=True)
                self._wandb.define_metric("course/*", step_metric="course/step")
                for line in lines:
                    self._wandb.log({f"course/{name}": value for name, value in line.items()})

    def log_scores(self, training: Mapping[str, float], scores: Sequence[Score]) -> None:
        """Log scores and means over roles as a row of the W&B run, and write them and `training` to its summary."""
        if self._wandb is not None:
            with self._surviving("metrics"):
                metrics = flat(nested(scores))
                base = {f"base/{name}": value for name, value in role_figures(scores, "base").items()}
                base = {name: value for name, value in base.items() if "robustness/" not in name}
                figures = {**base, **metrics, **role_figures(scores)}
                self._wandb.log(figures)
                final = {f"train/{name}": value for name, value in training.items()}
                self._wandb.summary.update({**figures, **final, **self._summaries()})

    def _summaries(self) -> dict[str, dict[str, float]]:
        """SUMMARIES over all attempts. W&B itself summarises this attempt only."""
        lines = self._read()
        return {
            f"train/{curve}": {kind: KINDS[kind]([line[curve] for line in lines]) for kind in kept.split(",")}
            for curve, kept in SUMMARIES.items()
            if all(curve in line for line in lines)
        }

    def log_evaluation(self, scores: Sequence[Score], samples: Sequence[Sample], *, questions: bool) -> None:
        """Log a table of accuracies, histograms of MaxLogit and, with `questions`, a table of the questions."""
        if self._wandb is None:
            return
        from wandb import Table

        from unlearn.tracking.wandb_run import histograms, question_tables

        with self._surviving("the table of accuracies"):
            self._wandb.log({"evaluation": Table(EVALUATION, evaluation_rows(scores))})
        with self._surviving("the table of texts"):
            if held_out := text_rows(scores):
                self._wandb.log({"texts": Table(TEXTS, held_out)})
        with self._surviving("histograms of MaxLogit"):
            if of_max_logits := histograms(scores, samples):
                self._wandb.log(of_max_logits)
        if questions:
            with self._surviving("the table of questions"):
                self._wandb.log(question_tables(list(question_rows(samples))))

    def log_delta(self, file: Path, name: str, metadata: Mapping[str, Any]) -> None:
        """Log the delta as an artifact. The file is not copied."""
        if self._wandb is not None:
            from wandb import Artifact

            with self._surviving("the delta"):
                sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
                artifact = Artifact(f"delta-{name}", type="delta", metadata={**metadata, "sha256": sha256})
                artifact.add_file(str(file), policy="immutable", skip_cache=True)
                self._wandb.log_artifact(artifact)

    def close(self, failed: bool) -> None:
        """Close the log and finish the W&B run, with the status failed if `failed` is set."""
        with suppress(OSError):  # the disk is full; writing the line has failed the run already
            self._lines.close()
        run, self._wandb = self._wandb, None
        if run is not None:
            with self._surviving("the end of the run"):
                run.finish(exit_code=1 if failed else 0)

    @contextmanager
    def _surviving(self, what: str) -> Iterator[None]:
        """Report an error of W&B inside the block, once for each `what`, and go on."""
        try:
            yield
        except Exception as error:
            if what not in self._failed:
                self._failed.add(what)
                say(f"W&B did not accept {what} ({describe(error)}). The run's files have it.")


def remove_earlier_attempts(folder: Path, run: wandb.Run) -> None:
    """Remove the offline files of earlier attempts at a run. This attempt has logged all of their steps again.

    `wandb sync` does not merge attempts: each file overwrites the run's rows, and the upload stops at the file of a
    killed process.
    """
    for earlier in folder.glob(f"wandb/offline-run-*-{run.id}"):
        if not Path(run.dir).is_relative_to(earlier):
            shutil.rmtree(earlier, ignore_errors=True)
