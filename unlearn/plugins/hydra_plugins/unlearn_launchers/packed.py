"""`hydra/launcher=packed`: the jobs of a sweep that share model and data are trained together, in this process.

Hydra imports this file at every start: whatever is heavy is imported when it is needed.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

log = logging.getLogger(__name__)


class PackedLauncher(Launcher):
    """Composes every job as Hydra's own launcher does, then runs those that can share a process together.

    `pack_size` bounds the jobs of a process; None stands for as many as the device's memory holds.
    """

    def __init__(self, pack_size: int | None = None) -> None:
        self.pack_size = pack_size

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """What Hydra knows; the task function itself, which runs one job, is not called."""
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all jobs. Raises UserError after the last one if some of them failed."""
        from unlearn.errors import UserError, describe
        from unlearn.packs import packs, run_pack

        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        jobs = {initial_job_idx + i: self._compose(initial_job_idx + i, o) for i, o in enumerate(job_overrides)}
        composed = {i: job.return_value for i, job in jobs.items() if job.status == JobStatus.COMPLETED}
        for pack in packs({i: config for i, (config, _) in composed.items()}, self.pack_size):
            log.info(f"Jobs in one process: {', '.join(f'#{i}' for i in pack)}")
            for i, outcome in zip(pack, run_pack([composed[i] for i in pack]), strict=True):
                jobs[i].return_value = outcome
                if isinstance(outcome, Exception):
                    jobs[i].status = JobStatus.FAILED
        failed = {i: job._return_value for i, job in jobs.items() if job.status == JobStatus.FAILED}
        for error in failed.values():
            if not isinstance(error, UserError):
                traceback.print_exception(error)
        if failed:
            lines = [f"  #{i} {' '.join(job_overrides[i - initial_job_idx])}: {describe(e)}" for i, e in failed.items()]
            raise UserError("\n".join([f"{len(failed)} of {len(jobs)} jobs failed:", *lines]))
        return list(jobs.values())

    def _compose(self, number: int, overrides: Sequence[str]) -> JobReturn:
        """The job as far as its checked configuration and Hydra's own files; its return value is both."""
        from unlearn.cli import to_config

        log.info(f"\t#{number} : {' '.join(filter_overrides(overrides))}")
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        job = run_job(
            hydra_context=self.hydra_context,
            task_function=to_config,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        return job
