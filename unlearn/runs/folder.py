"""A run's folder and its files. A run is either complete or can be resumed.

run.json                 configuration, versions, hashes, attempts, status (running, done, failed)
train.jsonl              a line per logged step
scores.parquet           a row for each model, task, query and measure (`unlearn.records.scores`)
samples.parquet          a row for each question and text (`unlearn.records.samples`)
ngrams.json              the lists of n-grams, if queries need them (`unlearn.records.ngrams`)
metrics.json             the scores in readable form: model, task, query, measure; and the final values of the training
evaluations/NAME/        the same files of a later evaluation, and evaluation.json, which says what was asked
delta.safetensors        the changed matrices
course.jsonl             measures every `eval.every` steps, if it is set
theory.json              the results of `unlearn theory`, if it was run
.hydra/                  Hydra's own record of the configuration

and until it is complete:

steps/                   the changed matrices every `eval.every` steps
checkpoint.safetensors   the state of the training (`unlearn.training.checkpoint`)
partial/                 journals of the evaluation (`unlearn.evaluation.journal`)
.unlearn-lock/           the process that works on the run, its progress, and what it writes (`unlearn.storage.lock`)
"""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from unlearn.config.identity import RESULTS_VERSION, training_identity
from unlearn.errors import UserError
from unlearn.records.answers import Answers
from unlearn.records.ngrams import NGRAMS, Sizes, as_json
from unlearn.records.run import RECORD, check_identity, read_record
from unlearn.records.scores import nested
from unlearn.records.terms import TERMS
from unlearn.runs.provenance import attempt, code_version, package_versions
from unlearn.storage import slurm_job
from unlearn.storage.files import write_json
from unlearn.storage.hashing import json_sha256
from unlearn.storage.hold import LOCK, Lost
from unlearn.storage.lock import FolderLock
from unlearn.storage.schema import check_links

UNFINISHED = ("checkpoint.safetensors", "partial", "steps")  # what a finished run removes
# What a run removes that starts anew, or that is asked other questions.
OF_A_TRAINING = ("train.jsonl", "delta.safetensors", *UNFINISHED)
OF_AN_EVALUATION = (
    *("scores.parquet", "samples.parquet", NGRAMS, TERMS, "metrics.json", "course.jsonl", "theory.json"),
    *("attacks", "evaluations", "partial"),
)
OF_TRAINING = ("model", "dtype", "rows", "padding", "preferred", "method")  # inputs that determine the training


class RunFolder:
    """One run's folder and its run.json. Whatever changes the folder needs its lock (`locked`)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record: dict[str, Any] = {}
        self._lock: FolderLock | None = None
        self.read()

    @contextmanager
    def locked(self) -> Iterator[FolderLock]:
        """Hold the folder's lock, and read run.json again. Raises Busy if another process holds it."""
        with FolderLock(self.path) as self._lock:
            self.read()  # another process may have changed it
            yield self._lock

    @property
    def lock(self) -> FolderLock:
        """The lock, through which all files are written and removed."""
        assert self._lock is not None, "only inside `locked`"
        return self._lock

    def read(self) -> None:
        """Read run.json again. Raises UserError if it is damaged, and for a link that leads out of the folder."""
        if self.file(RECORD).exists():
            self.record = read_record(self.path)

    def file(self, name: str) -> Path:
        """A file of this folder."""
        return self.path / name

    @property
    def done(self) -> bool:
        """Whether this folder's run is finished."""
        return self.record.get("status") == "done"

    def check_done(self) -> None:
        """Raise UserError unless this folder's run is finished."""
        if not self.done:
            raise UserError(f"{self.path}: there is no finished run here (no run.json with the status done).")

    def claim(self, identity: dict[str, Any]) -> None:
        """Raise UserError if this folder holds a run with another identity, or a link that leads out of it."""
        check_links(self.path)
        other = self.record.get("identity")
        if other is not None and other != identity:
            differing = ", ".join(sorted(_differences(other, identity))) or "version of the results"
            raise UserError(
                f"{self.path} holds another run, which differs in {differing}. Choose another output_dir, or leave it "
                "out to give each run its own folder."
            )

    def check_files(self) -> None:
        """Raise UserError if this folder has no run but files that a run would replace."""
        if not self.file(RECORD).is_file():
            names = dict.fromkeys((*OF_A_TRAINING, *OF_AN_EVALUATION))
            files, why = [name for name in names if self.file(name).exists()], "it has no run.json"
        else:
            of_a_run = "identity" in self.record or not self.record  # it is empty while a run starts anew
            files, why = [] if of_a_run else [RECORD], "its run.json is something else"
        if files:
            raise UserError(
                f"output_dir={self.path} is not the folder of a run ({why}), and a run would replace "
                f"{', '.join(files)}. Choose another folder."
            )

    def check_dtype(self, inputs: dict[str, Any]) -> None:
        """Raise UserError if this folder's run was trained in another dtype: model.dtype=auto depends on the device."""
        dtype = inputs["dtype"]
        recorded_dtype = self.record.get("inputs", {}).get("dtype", dtype)
        begun = any(self.file(name).is_file() for name in ("checkpoint.safetensors", "delta.safetensors"))
        if begun and recorded_dtype != dtype:
            raise UserError(
                f"{self.path}: this run was started in {recorded_dtype}, but model.dtype=auto is {dtype} on this "
                f"device. Resume it on a device like the first, or set model.dtype={dtype} to start another run."
            )

    def verify(self, inputs: dict[str, Any]) -> None:
        """Raise UserError if this folder's run used other data or another model under the same names."""
        inputs = {key: value for key, value in inputs.items() if key != "dtype"}  # a finished run may be on any device
        if not same_inputs(self.record, inputs):
            recorded = {key: value for key, value in self.record["inputs"].items() if key in inputs}
            differing = ", ".join(sorted(_differences(recorded, {key: inputs[key] for key in recorded})))
            raise UserError(
                f"{self.path} holds a run with the same configuration but other inputs; they differ in {differing}. "
                "Set data.name, model.name or eval.name to tell them apart, or choose an output_dir."
            )

    def start(
        self, config: dict[str, Any], identity: dict[str, Any], inputs: dict[str, Any], *, anew: bool = False
    ) -> None:
        """Write run.json. Files of an unfinished run of the same identity and inputs are kept, unless `anew`.

        If only the questions have changed, the files of the training are kept.
        """
        same = self.record.get("identity") == identity and not self.done and not anew
        continued = same and same_inputs(self.record, inputs)
        trained = same and same_inputs(self.record, inputs, OF_TRAINING)
        before = self.record if trained else {}
        kept = ["trained", "training_from", "wandb_id"]
        if not trained:
            # It marks the other files as a run's if this is interrupted.
            self.lock.write_json(self.file(RECORD), {})
            self._remove(*OF_A_TRAINING)
        if not continued:
            self._remove(*OF_AN_EVALUATION)
        code = code_version()
        self.record = {
            "status": "running",
            "config": config,
            "identity": identity,
            "hashes": {"training": json_sha256(training_identity(identity)), "run": json_sha256(identity)},
            "inputs": inputs,
            "code": code,
            "python": sys.version.split()[0],
            "packages": package_versions(),
            "attempts": [*before.get("attempts", []), attempt() | {"commit": code["commit"]}],
            **{key: before[key] for key in kept if key in before},
        }
        self.write()

    def add_attacks(self, names: Sequence[str]) -> None:
        """Record that these were made, by the names under which the configuration asked for them."""
        self.record["attacked"] = sorted({*names, *self.record.get("attacked", [])})
        self.write()

    def write(self) -> None:
        """Write run.json."""
        self.lock.write_json(self.file(RECORD), self.record)

    @property
    def trained(self) -> dict[str, float] | None:
        """The training's final metrics if the delta is there, else None."""
        return self.record.get("trained") if self.file("delta.safetensors").is_file() else None

    def weights_after(self, steps: int, last: int) -> Path:
        """The file of the changed matrices after so many steps, of `last` in all; see `eval.every`."""
        return self.file("delta.safetensors" if steps == last else f"steps/{steps:06d}.safetensors")

    def finish_training(self, metrics: dict[str, float]) -> None:
        """Record that the delta is written, and remove the checkpoint."""
        self.record["trained"] = metrics
        self.write()
        self._remove("checkpoint.safetensors")

    def finish(self, answers: Answers, ngrams: Sizes | None = None) -> None:
        """Write the results, and the lists of n-grams that were asked for, then set the status to done."""
        with self.lock.filling(self.path, last="metrics.json") as results:
            write_results(results, answers, self.trained or {}, ngrams)
        self._end("done")
        self.write()
        self._remove(*UNFINISHED)

    @property
    def begun_by_this_job(self) -> bool:
        """Whether this SLURM job made the last attempt before it was interrupted and restarted."""
        last = self.last_attempt
        same = slurm_job.job_id() is not None and last.get("slurm_job") == slurm_job.job_id()
        return same and last["slurm_restarts"] < slurm_job.restarts()

    @property
    def last_attempt(self) -> dict[str, Any]:
        """The last attempt: the place and time at which a process began to work on this run."""
        attempts = self.record.get("attempts") or [{}]
        return attempts[-1]

    @property
    def interruptions(self) -> int:
        """The number of earlier attempts that were interrupted."""
        return sum("ended" not in attempt for attempt in self.record.get("attempts", [])[:-1])

    @property
    def untidy(self) -> bool:
        """Whether there are files that a finished run removes."""
        return any(self.file(name).exists() for name in UNFINISHED) or any(self.path.glob(f"{LOCK}*"))

    def tidy(self) -> None:
        """Remove files that remain if the process was killed between its last result and its end."""
        with self.locked():
            self._remove(*UNFINISHED)

    def _remove(self, *names: str) -> None:
        for name in names:
            self.lock.remove(self.file(name))

    def fail(self, error: str) -> None:
        """Set the status to failed, with the error. Files stay, and the next attempt resumes."""
        self._end("failed")
        self.record["error"] = error
        with suppress(OSError, Lost):  # a full disk, or the lost lock, has been reported already
            self.write()

    def _end(self, status: str) -> None:
        self.record["status"] = status
        self.last_attempt.update(ended=status, until=time.time())

    def keep_hydra_files(self, hydra_folder: Path) -> None:
        """Copy Hydra's record of the configuration from where Hydra wrote it."""
        source = hydra_folder / ".hydra"
        if source.is_dir() and source.resolve() != self.file(".hydra").resolve():
            for file in source.iterdir():
                self.lock.write(self.file(".hydra") / file.name, file.read_bytes())


def check_results(folder: Path, record: Mapping[str, Any]) -> None:
    """Raise UserError if a run's results are of another version, which this one cannot read, or of another form."""
    identity = record.get("identity", {})
    version = identity.get("results_version")
    if isinstance(version, int) and version != RESULTS_VERSION:
        raise UserError(
            f"{folder} has results of version {version}, but this package reads version {RESULTS_VERSION}. Run the "
            "same command again: the run gets a new folder."
        )
    check_identity(folder, identity)


def write_results(folder: Path, answers: Answers, training: Mapping[str, float], ngrams: Sizes | None = None) -> None:
    """Write scores.parquet, samples.parquet, ngrams.json if there are lists of n-grams, and metrics.json."""
    answers.write(folder)
    if ngrams:
        write_json(folder / NGRAMS, as_json(ngrams))
    write_json(folder / "metrics.json", {"train": dict(training), **nested(answers.scores)})


def same_inputs(record: Mapping[str, Any], inputs: Mapping[str, Any], keys: Collection[str] | None = None) -> bool:
    """Whether a run read these inputs, or with `keys` these of them. True for a run that has not started."""
    if "inputs" not in record:
        return True
    return all(record["inputs"].get(key) == inputs[key] for key in inputs if keys is None or key in keys)


def _differences(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> set[str]:
    """Dotted keys at which two nested dictionaries differ."""
    keys: set[str] = set()
    for key in a.keys() | b.keys():
        x, y = a.get(key), b.get(key)
        if isinstance(x, dict) and isinstance(y, dict):
            keys |= _differences(x, y, f"{prefix}{key}.")
        elif x != y:
            keys.add(f"{prefix}{key}")
    return keys
