"""`python launch.py`, `unlearn run`: start runs and sweeps. A user's mistake ends them with one sentence."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from unlearn.cli.hints import explain
from unlearn.config.compose import CONF
from unlearn.config.hydra_job import FULL_ERROR, raising_errors, to_config, users_environment
from unlearn.errors import UserError
from unlearn.screen import plain

MISTAKES = (UserError, HydraException, OmegaConfBaseException)

# Of Hydra's own launcher, with their mistakes; None: tracebacks are shown.
_failed_jobs: list[str] | None = None


def launch() -> None:
    """Run what this process's command line says; Hydra reads it."""
    with one_sentence():
        _job()


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _job(raw: DictConfig) -> None:
    """Check the configuration (nothing heavy is imported for that), then run."""
    with of_one_job():
        config, hydra_folder = to_config(raw)
        from unlearn.experiment import run

        run(config, hydra_folder)


@contextmanager
def one_sentence() -> Iterator[None]:
    """A user's mistake inside the block ends the process with one sentence and exit status 1.

    If the user has set HYDRA_FULL_ERROR, everything is raised.
    SIGTERM, which SLURM sends before it kills, ends the process as Ctrl-C does: files and W&B runs are closed.
    """
    global _failed_jobs
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if os.environ.get(FULL_ERROR) == "1":
        yield
        return
    _failed_jobs = []
    try:
        with raising_errors():
            for nameless in (argument for argument in sys.argv[1:] if argument.startswith("=")):
                raise UserError(f"{nameless}: cannot be read as KEY=VALUE.")  # Hydra ends in a traceback
            yield
            if _failed_jobs:
                sys.exit(plain("\n  ".join(["Failed jobs:", *_failed_jobs])))
    except MISTAKES as error:
        sys.exit(plain(explain(error)))
    finally:
        _failed_jobs = None


@contextmanager
def of_one_job() -> Iterator[None]:
    """`one_sentence` inside a job. With Hydra's own launcher the other jobs follow, and the errors come at the end.

    Hydra prints the overrides of a job that raises an error, so a mistake must not reach it.
    """
    try:
        with users_environment():
            yield
    except MISTAKES as error:
        if _failed_jobs is None:
            raise
        job = HydraConfig.get()
        if job.mode != RunMode.MULTIRUN:
            sys.exit(plain(explain(error)))
        _failed_jobs.append(f"#{job.job.num} {' '.join(job.overrides.task)}: {explain(error)}")
