"""Launchers for `-m`: in this process, in one for each GPU of this machine, or on SLURM.

Hydra imports this file at every start (plugins/ names its classes), so other modules are imported when they are needed.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

if TYPE_CHECKING:
    from unlearn.config.schema import Config
    from unlearn.sweeps.sweep import Sweep

log = logging.getLogger(__name__)


def settle_with_nu(raw: DictConfig) -> Config:
    """A job's checked configuration; `rna.nu=auto` becomes a number first."""
    from unlearn.config.settle import asks_for_nu, settle

    if not asks_for_nu(raw):
        return settle(raw)
    from unlearn.sweeps.auto_nu import find_nu

    return find_nu(raw)


class SweepLauncher(Launcher):
    """Composes every job as Hydra's own launcher does and adds it to the sweep. Subclasses run the jobs."""

    dry_run = False  # show what would run, and write no sweep.json
    in_a_container = False  # jobs may see other files than this process
    trains_here = True  # this machine is for training

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra passes. The task function, which runs one job, is not used.

        Raises UserError for batches: a job that fails would end the sweep before the next one.
        """
        from unlearn.errors import UserError

        self.hydra_context, self.config = hydra_context, config
        if (size := config.hydra.sweeper.get("max_batch_size")) is not None:
            raise UserError(
                f"hydra.sweeper.max_batch_size={size} is not allowed: it must be null, "
                "and hydra.launcher.pack_size says how many jobs a process has at most."
            )

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all jobs. Raises UserError after the last one if some of them failed."""
        from unlearn.errors import UserError
        from unlearn.sweeps.summary import show_summary
        from unlearn.sweeps.sweep import Sweep, failure_list

        folder = Path(str(self.config.hydra.sweep.dir))
        sweep = Sweep(folder) if initial_job_idx == 0 else Sweep.open(folder)
        numbered = {initial_job_idx + i: overrides for i, overrides in enumerate(job_overrides)}
        errors, begun = self.run_jobs(sweep, numbered)
        if begun and not self.dry_run:
            if all(state.ended for state in sweep.states().values()):
                show_summary(sweep)
            log.info(f"Figures and tables of what is done: unlearn report {folder} -o report.html")
        if errors:
            raise UserError(failure_list(sweep, errors, len(numbered)))
        return [JobReturn(_return_value=sweep.jobs[i].folder, status=JobStatus.COMPLETED) for i in numbered]

    def run_jobs(self, sweep: Sweep, overrides: Mapping[int, Sequence[str]]) -> tuple[dict[int, str], bool]:
        """Add jobs to a sweep and run them: {number: error} of those that failed, and whether any could begin."""
        from unlearn.config.hydra_job import users_environment

        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        self.configs: dict[int, Config] = {}
        numbers = [self._add(sweep, number, given) for number, given in overrides.items()]
        if not self.dry_run:
            sweep.write()
        errors = self._errors_before(sweep, numbers)
        ready = [number for number in numbers if number not in errors]
        if ready:
            with users_environment():
                errors |= self.run(sweep, ready)
        return errors, bool(ready)

    def _errors_before(self, sweep: Sweep, numbers: list[int]) -> dict[int, str]:
        """The jobs that cannot run, and why: a wrong configuration, an input or an output folder (`obstacles`)."""
        from unlearn.sweeps.obstacles import obstacle

        errors: dict[int, str] = {}
        for number in numbers:
            error = sweep.jobs[number].error
            if error is None and not self.in_a_container:
                error = obstacle(self.configs[number])
                if error is not None and not self.dry_run:
                    sweep.keep_error(number, None, error)
            if error is not None:
                errors[number] = error
        return errors

    @abstractmethod
    def run(self, sweep: Sweep, numbers: list[int]) -> Mapping[int, str]:
        """Run these jobs of a sweep. Returns {number: error} of failed jobs."""

    def unfinished(self, sweep: Sweep, numbers: list[int]) -> tuple[dict[int, Config], dict[int, str]]:
        """The configurations of those jobs that are not finished, and the errors of those that cannot be run.

        Whether a job in a container is finished is not known here, where its files may be others: it will tell itself.
        """
        from unlearn.sweeps.finished import finished

        configs = {number: self.configs[number] for number in numbers}
        done, errors = ([], {}) if self.in_a_container else finished(configs)
        for number in done:
            log.info(
                f"\t#{number} is finished: nothing to do (train.force=true repeats it): {sweep.jobs[number].folder}"
            )
        if not self.dry_run:
            for number, error in errors.items():
                sweep.keep_error(number, None, error)
        left = {number: config for number, config in configs.items() if number not in done and number not in errors}
        return left, errors

    def _add(self, sweep: Sweep, number: int, overrides: Sequence[str]) -> int:
        """Compose and check a job, write Hydra's own files, and add the job or its error to the sweep."""
        from unlearn.config.hydra_job import to_config

        log.info(f"\t#{number} : {' '.join(filter_overrides(overrides))}")
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        _name_sweep(config, sweep.folder)
        job = run_job(
            hydra_context=self.hydra_context,
            task_function=partial(to_config, settle=settle_with_nu) if self.trains_here else to_config,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
            configure_logging=False,
        )
        if job.status == JobStatus.COMPLETED:
            self.configs[number], hydra_folder = job.return_value
            sweep.add(number, list(overrides), self.configs[number], hydra_folder)
        else:
            sweep.add_failed(number, list(overrides), job._return_value)
        return number


def _name_sweep(config: DictConfig, folder: Path) -> None:
    """Set a job's W&B group to its sweep, unless there is a group, and add the sweep's name as a tag.

    A job on SLURM knows only its composed configuration, so it is done before.
    """
    chosen = config.hydra.runtime.choices.get("sweep")
    named = [] if chosen is None else [str(chosen)]
    if OmegaConf.select(config, "tracker.tags") is not None:
        config.tracker.tags = [*config.tracker.tags, *named]
        config.tracker.group = config.tracker.group or " ".join([*named, *folder.parts[-2:]])


class PackedLauncher(SweepLauncher):
    """`hydra/launcher=packed`: jobs that share model and data are trained together, in this process.

    `pack_size` bounds the jobs of a process; None stands for as many as the device's memory holds.
    """

    def __init__(self, pack_size: int | None = None) -> None:
        self.pack_size = pack_size

    def run(self, sweep: Sweep, numbers: list[int]) -> Mapping[int, str]:
        """Pack by pack."""
        from unlearn.errors import describe
        from unlearn.sweeps.worker import run_packed, shown_as_running

        with shown_as_running(sweep):
            outcomes = run_packed(sweep, numbers, self.pack_size)
        return {i: describe(error) for i, error in outcomes.items() if isinstance(error, Exception)}


class LocalLauncher(SweepLauncher):
    """`hydra/launcher=local`: the jobs spread over the GPUs of this machine, a process for each.

    `devices` are places among the visible GPUs; None stands for all. `pack_size` bounds the jobs of a process. Runs
    that are finished already are left out.
    """

    def __init__(self, devices: Sequence[int] | None = None, pack_size: int | None = None) -> None:
        self.settings = {"devices": None if devices is None else list(devices), "pack_size": pack_size}

    def run(self, sweep: Sweep, numbers: list[int]) -> Mapping[int, str]:
        """Part by part, on whichever device is free."""
        from unlearn.sweeps.local import run_local

        sweep.launcher, sweep.settings = "local", self.settings
        sweep.write()
        configs, errors = self.unfinished(sweep, numbers)
        return errors | run_local(sweep, configs) if configs else errors


class SlurmLauncher(SweepLauncher):
    """`hydra/launcher=slurm`, `slurm_packed`: groups of `pack_size` jobs, each a job or array task of SLURM.

    With `wait`, it returns when all have ended; without, as soon as they are queued. Runs that are finished already
    are not queued. With `dry_run`, nothing is queued: the scripts are printed.
    """

    trains_here = False

    def __init__(self, pack_size: int | None, wait: bool, dry_run: bool, **settings: Any) -> None:
        self.pack_size, self.wait, self.dry_run = pack_size, wait, dry_run
        self.settings = {k: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for k, v in settings.items()}
        self.in_a_container = self.settings["python"] is not None

    def setup(self, **given: Any) -> None:
        """Raises UserError, before anything is composed, where no cluster answers."""
        from unlearn.errors import UserError
        from unlearn.sweeps import slurm

        super().setup(**given)
        if not self.dry_run and not slurm.answers():
            raise UserError(
                "hydra/launcher: no SLURM answers here (scontrol ping). hydra/launcher=packed runs here, and "
                "hydra.launcher.dry_run=true shows what would be submitted."
            )

    def run(self, sweep: Sweep, numbers: list[int]) -> Mapping[int, str]:
        """Submit the jobs; with `wait`, until they have ended."""
        from unlearn.sweeps.packs import packs
        from unlearn.sweeps.status import wait_for
        from unlearn.sweeps.submission import describe_submission, submit

        configs, errors = self.unfinished(sweep, numbers)
        if not configs:
            return errors
        groups = packs(configs, len(configs) if self.pack_size is None else self.pack_size)
        if self.dry_run:
            print(describe_submission(sweep, groups, self.settings))
            return errors
        submit(sweep, groups, self.settings)
        log.info(f"Submitted {len(groups)} SLURM jobs, {sweep.tasks[min(configs)]} the first; output: {sweep.folder}")
        log.info(f"They go on without this process. To watch them: unlearn status {sweep.folder}")
        return errors | wait_for(sweep, list(configs)) if self.wait else errors


class AutoLauncher(SweepLauncher):
    """The default: on SLURM where a cluster answers, else here, packed; on all GPUs, if there are several.

    Without `pack_size`, a SLURM job has one job of the sweep, and a process here as many as fit into memory.
    """

    def __init__(self, pack_size: int | None, **slurm_settings: Any) -> None:
        self.pack_size = pack_size
        self.slurm = SlurmLauncher(1 if pack_size is None else pack_size, **slurm_settings)
        self.dry_run = self.slurm.dry_run

    def setup(self, **given: Any) -> None:
        """Decide where jobs run, and say so in the first line."""
        from unlearn.sweeps import slurm

        super().setup(**given)
        self.on_slurm = self.dry_run or slurm.answers()
        self.in_a_container = self.on_slurm and self.slurm.in_a_container
        self.trains_here = not self.on_slurm
        if self.dry_run:
            log.info("hydra/launcher=auto, dry run: as if SLURM answered")
        elif self.on_slurm:
            log.info("hydra/launcher=auto: SLURM answers, the jobs go there (hydra/launcher=packed runs them here)")
        else:
            log.info(
                "hydra/launcher=auto: no SLURM answers, the jobs run here, on all GPUs where there are several "
                "(hydra/launcher=local), else together in this process (hydra/launcher=packed)"
            )

    def run(self, sweep: Sweep, numbers: list[int]) -> Mapping[int, str]:
        """Run on SLURM or here."""
        launcher: SweepLauncher = self.slurm
        if not self.on_slurm:
            kind = LocalLauncher if self._on_several(numbers) else PackedLauncher
            launcher = kind(pack_size=self.pack_size)
        launcher.configs = self.configs
        return launcher.run(sweep, numbers)

    def _on_several(self, numbers: list[int]) -> bool:
        """Whether the jobs would run on a GPU, and there are several."""
        from unlearn.models.devices import count_gpus, visible_devices

        devices = {self.configs[number].model.device for number in numbers}
        return devices <= {"auto", "cuda"} and len(numbers) > 1 and count_gpus() > 0 and len(visible_devices()) > 1
