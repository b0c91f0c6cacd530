"""A run that ends itself by SIGKILL, or stops itself, when its progress reaches a chosen moment."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import safetensors.torch

from unlearn import experiment
from unlearn.cli.main import main
from unlearn.config.schema import Config
from unlearn.evaluation.journal import Journal
from unlearn.runs import active
from unlearn.storage import files
from unlearn.storage.hold import Lost
from unlearn.tracking.tracker import Tracker
from unlearn.training import checkpoint

LOST = 17  # exit code
how = signal.SIGKILL


def die() -> None:
    os.kill(os.getpid(), how)


def stopped(command: list[Any], moment: str, n: int) -> None:
    """Run ["run", configuration] or a command, and stop at the n-th `moment` until another process says to go on."""
    global how
    how = signal.SIGSTOP
    MOMENTS[moment](Countdown(n), True)
    try:
        if command[0] == "run":
            experiment.run(command[1])
        else:
            main(command)
    except Lost:
        sys.exit(LOST)
    except SystemExit as end:  # of the command line
        sys.exit(LOST if "has lost the lock" in str(end.code) and "\n" not in str(end.code) else str(end.code))


class Countdown:
    """True at its n-th call."""

    def __init__(self, n: int) -> None:
        self.left = n

    def __call__(self) -> bool:
        self.left -= 1
        return self.left == 0


def while_training(now: Countdown, late: bool) -> None:
    """At a step's line in train.jsonl: before or after it is written."""
    log_step = Tracker.log_step

    def logged(self, record):
        hit = now()
        if hit and not late:
            die()
        log_step(self, record)
        if hit:
            die()

    Tracker.log_step = logged


def while_writing_a_checkpoint(now: Countdown, late: bool) -> None:
    """Half of the file is written, or all of it, but it has not replaced the last one yet."""

    def saved(tensors, file, metadata):
        safetensors.torch.save_file(tensors, file, metadata)
        if now():
            if not late:
                os.truncate(file, Path(file).stat().st_size // 2)
            die()

    checkpoint.save_file = saved


def after_a_checkpoint(now: Countdown, late: bool) -> None:
    save = checkpoint.save_checkpoint

    def saved(file, variant):
        save(file, variant)
        if now():
            die()

    active.save_checkpoint = saved


def while_evaluating(now: Countdown, late: bool) -> None:
    """A batch has been scored: half of its line is written, or all of it."""
    add = Journal.add

    def added(self, number, result):
        hit = now()
        if hit and not late:
            self._stream.write(f"[{number}, [[-1.2".encode())
            self._stream.flush()
            die()
        add(self, number, result)
        if hit:
            die()

    Journal.add = added


def while_writing_results(now: Countdown, late: bool) -> None:
    """At the n-th file that is synchronised: run.json, samples, metrics.json, the delta."""
    to_disk = files._to_disk

    def synchronised(path):
        if not late and now():
            die()
        to_disk(path)
        if late and now():
            die()

    files._to_disk = synchronised


MOMENTS = {
    "training": while_training,
    "checkpoint": while_writing_a_checkpoint,
    "after a checkpoint": after_a_checkpoint,
    "evaluating": while_evaluating,
    "results": while_writing_results,
}


def run(configs: list[Config], moment: str | None, n: int = 1, late: bool = False) -> None:
    """Run configurations together in this process; it kills itself at the n-th `moment`."""
    if moment is not None:
        MOMENTS[moment](Countdown(n), late)
    for outcome in experiment.run_together(configs):
        if outcome.error is not None:
            raise outcome.error
