"""Running jobs of a sweep in one process, as many at a time as fit into memory."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import signal
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from unlearn.config.identity import run_folder
from unlearn.config.schema import Config
from unlearn.errors import UserError, describe
from unlearn.screen import say
from unlearn.storage import slurm_job
from unlearn.storage.lock import Busy, FolderLock, live_holder
from unlearn.sweeps.packs import packs
from unlearn.sweeps.sweep import Sweep, failure_list

log = logging.getLogger(__name__)
Outcome = Path | Exception  # a run's folder, or why it failed
POLL_S = 5.0


def run_packed(
    sweep: Sweep, numbers: Sequence[int], pack_size: int | None = None, task: str | None = None
) -> dict[int, Outcome]:
    """Run these jobs of a sweep in this process, pack by pack. Returns the folder or the error of each.

    Errors are also written into the sweep's folder. `task` is the SLURM task of this process, if it is one: then a run
    that another process works on is left to that one, since the task's GPU must not wait, and its outcome is `Busy`.
    Elsewhere, this process waits for the other one.
    """
    outcomes: dict[int, Outcome] = {}
    configs: dict[int, Config] = {}
    for number in numbers:
        sweep.keep_error(number, task, None)
        try:
            configs[number] = sweep.config(number)
        except Exception as error:
            outcomes[number] = error
    outcomes |= _run_packs(sweep, configs, pack_size)
    while task is None and any(isinstance(outcome, Busy) for outcome in outcomes.values()):
        free = _wait_for_a_folder(sweep, {n: configs[n] for n, o in outcomes.items() if isinstance(o, Busy)})
        outcomes |= _run_packs(sweep, free, pack_size)
    for number, outcome in outcomes.items():
        if isinstance(outcome, Exception):
            if not isinstance(outcome, Busy):  # what becomes of the run is in its folder
                sweep.keep_error(number, task, describe(outcome))
            if not isinstance(outcome, UserError):
                traceback.print_exception(outcome)
    return outcomes


@contextmanager
def shown_as_running(sweep: Sweep) -> Iterator[None]:
    """Inside the block `unlearn status` shows jobs that have not begun as pending.

    Where another process holds the sweep's folder, both work: each waits for the runs that the other one works on.
    """
    with ExitStack() as stack:
        with suppress(Busy):
            stack.enter_context(FolderLock(sweep.folder))
        yield


def _run_packs(sweep: Sweep, configs: dict[int, Config], pack_size: int | None) -> dict[int, Outcome]:
    import torch

    from unlearn.experiment import run_together

    outcomes: dict[int, Outcome] = {}
    for pack in packs(configs, pack_size):
        log.info(f"Jobs in one process: {', '.join(f'#{i}' for i in pack)}")
        try:
            hydra_folders = [sweep.home(i) for i in pack]
            runs = run_together([configs[i] for i in pack], hydra_folders)
            outcomes |= {i: run.error or run.folder for i, run in zip(pack, runs, strict=True)}
        except Exception as error:
            outcomes |= dict.fromkeys(pack, error)
        for outcome in (outcomes[i] for i in pack):
            if isinstance(outcome, Exception):  # its traceback would keep models in memory while the next pack runs
                traceback.clear_frames(outcome.__traceback__)
        gc.collect()
        torch.cuda.empty_cache()
    return outcomes


def _wait_for_a_folder(sweep: Sweep, busy: dict[int, Config]) -> dict[int, Config]:
    """Wait until another process has left the folders of some of these jobs; returns those jobs."""
    names = ", ".join(f"#{n} {sweep.label(n)}" for n in busy)
    say(f"Another process works on {names}: waiting for it (Ctrl-C ends this command, not the other)")
    while True:
        time.sleep(POLL_S)
        free = {n: config for n, config in busy.items() if live_holder(run_folder(config)) is None}
        if free:
            return free


def run_jobs(folder: Path, numbers: Sequence[int], task: str | None = None) -> list[str]:
    """Run jobs of the sweep in `folder`, all that this process is for; returns the runs' folders.

    Raises UserError if some failed, so that the process, and with it a SLURM job, ends as failed, too.
    """
    sweep = Sweep.open(folder)
    os.chdir(sweep.cwd)
    outcomes = run_packed(sweep, numbers, task=task)
    errors = {number: describe(error) for number, error in outcomes.items() if isinstance(error, Exception)}
    if errors:
        raise UserError(failure_list(sweep, errors, len(numbers)))
    return [str(path) for path in outcomes.values()]


class RunJobs:
    """The function that a SLURM job calls: it runs some jobs of a sweep in one process.

    submitit pickles it by name, so the job imports the copy of the code in its working directory.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, numbers: list[int]) -> list[str]:
        """See `run_jobs`."""
        if shutil.which("scontrol") is None:  # as in some containers: submitit's `scontrol requeue` would fail
            say(
                "No scontrol here, so the job cannot queue itself again before SLURM ends it. SLURM does so after "
                "preemption (requeue); after a time limit: unlearn status --retry --allow-code"
            )
            signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        return run_jobs(self.folder, numbers, slurm_job.job_id())

    def checkpoint(self, numbers: list[int]) -> Any:
        """Called on the signal before preemption or the time limit: submit the same again. Runs resume.

        submitit then calls `scontrol requeue`, and SLURM ends all processes of the job, scontrol too. If scontrol was
        ended before it returned, the job would count as failed. So SIGTERM is ignored from here on, also by children.
        """
        import submitit

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return submitit.helpers.DelayedSubmission(self, numbers)
