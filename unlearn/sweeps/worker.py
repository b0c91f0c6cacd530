"""Running jobs of a sweep in one process, as many at a time as fit into memory."""

from __future__ import annotations

import gc
import logging
import os
import signal
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unlearn.config.schema import Config
from unlearn.errors import UserError, describe
from unlearn.storage import slurm_job
from unlearn.sweeps.packs import packs
from unlearn.sweeps.sweep import Sweep, failure_list

log = logging.getLogger(__name__)


def run_packed(
    sweep: Sweep, numbers: Sequence[int], pack_size: int | None = None, task: str | None = None
) -> dict[int, Path | Exception]:
    """Run these jobs of a sweep in this process, pack by pack. Returns the folder or the error of each.

    Errors are also written into the sweep's folder. `task` is the SLURM task of this process, if it is one.
    """
    import torch

    from unlearn.experiment import run_together

    found: dict[int, Path | Exception] = {}
    configs: dict[int, Config] = {}
    for number in numbers:
        sweep.keep_error(number, task, None)
        try:
            configs[number] = sweep.config(number)
        except Exception as error:
            found[number] = error
    for pack in packs(configs, pack_size):
        log.info(f"Jobs in one process: {', '.join(f'#{i}' for i in pack)}")
        try:
            hydra_folders = [Path(str(sweep.jobs[i].hydra_folder)) for i in pack]
            outcomes = run_together([configs[i] for i in pack], hydra_folders)
            found |= {i: o.error or o.folder for i, o in zip(pack, outcomes, strict=True)}
        except Exception as error:
            found |= dict.fromkeys(pack, error)
        for outcome in (found[i] for i in pack):
            if isinstance(outcome, Exception):  # its traceback would keep models in memory while the next pack runs
                traceback.clear_frames(outcome.__traceback__)
        gc.collect()
        torch.cuda.empty_cache()
    for number, outcome in found.items():
        if isinstance(outcome, Exception):
            sweep.keep_error(number, task, describe(outcome))
            if not isinstance(outcome, UserError):
                traceback.print_exception(outcome)
    return found


def run_jobs(folder: Path, numbers: Sequence[int], task: str | None = None) -> list[str]:
    """Run jobs of the sweep in `folder`, all that this process is for; returns the runs' folders.

    Raises UserError if some failed, so that the process, and with it a SLURM job, ends as failed, too.
    """
    sweep = Sweep.open(folder)
    os.chdir(sweep.cwd)
    found = run_packed(sweep, numbers, task=task)
    failed = {number: describe(error) for number, error in found.items() if isinstance(error, Exception)}
    if failed:
        raise UserError(failure_list(sweep, failed, len(numbers)))
    return [str(path) for path in found.values()]


class RunJobs:
    """The function that a SLURM job calls: it runs some jobs of a sweep in one process.

    submitit pickles it by name, so the job imports the copy of the code in its working directory.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, numbers: list[int]) -> list[str]:
        """See `run_jobs`."""
        return run_jobs(self.folder, numbers, slurm_job.job_id())

    def checkpoint(self, numbers: list[int]) -> Any:
        """Called on the signal before preemption or the time limit: submit the same again. Runs resume.

        submitit then calls `scontrol requeue`, and SLURM ends all processes of the job, scontrol too. If scontrol was
        ended before it returned, the job would count as failed. So SIGTERM is ignored from here on, also by children.
        """
        import submitit

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return submitit.helpers.DelayedSubmission(self, numbers)
