"""`python launch.py`, `unlearn run`: start runs and sweeps. A user's mistake ends them with one sentence."""

from __future__ import annotations

import os
import re
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
from unlearn.cli.importing import without_garbage_collection
from unlearn.config.compose import CONF
from unlearn.config.hydra_job import FULL_ERROR, raising_errors, to_config, users_environment
from unlearn.errors import GOES_ON, INTERRUPTED, UserError
from unlearn.screen import accept_every_letter, plain
from unlearn.sweeps.launchers import settle_with_nu

OVERRIDE = re.compile(r"[^-=][^=]*=|~")
MISTAKES = (UserError, HydraException, OmegaConfBaseException)

# Jobs of Hydra's own launcher that failed, with their messages; None: tracebacks are shown.
_failed_jobs: list[str] | None = None


def launch() -> None:
    """Run the job or sweep of this process's command line, which Hydra reads."""
    with one_sentence():
        _job()


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _job(raw: DictConfig) -> None:
    """Check the configuration before anything heavy is imported, then run."""
    with of_one_job():
        config, hydra_folder = to_config(raw, settle_with_nu)
        with without_garbage_collection():
            from unlearn.experiment import run

        run(config, hydra_folder)


@contextmanager
def one_sentence() -> Iterator[None]:
    """A user's mistake inside the block ends the process with one sentence and exit status 1; Ctrl-C, with 130.

    If the user has set HYDRA_FULL_ERROR, everything is raised.
    SIGTERM, which SLURM sends before it kills, ends the process as Ctrl-C does: files and W&B runs are closed.
    """
    global _failed_jobs
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    accept_every_letter()
    sys.argv[1:] = options_first(sys.argv[1:])
    if os.environ.get(FULL_ERROR) == "1":
        yield
        return
    _failed_jobs = []
    try:
        with raising_errors():
            check_arguments(sys.argv[1:])
            yield
            if _failed_jobs:
                sys.exit(plain("\n  ".join(["Failed jobs:", *_failed_jobs])))
    except MISTAKES as error:
        sys.exit(plain(explain(error)))
    except OSError as error:
        if error.filename is None:
            raise
        sys.exit(plain(f"{error.filename}: {error.strerror}. Choose another output folder with output_root=DIR."))
    except KeyboardInterrupt:
        print(GOES_ON, file=sys.stderr)
        sys.exit(INTERRUPTED)
    finally:
        _failed_jobs = None


def options_first(arguments: list[str]) -> list[str]:
    """The arguments with KEY=VALUE and ~KEY after all options, as Hydra needs them."""
    overrides = [argument for argument in arguments if OVERRIDE.match(argument)]
    return [argument for argument in arguments if argument not in overrides] + overrides


def check_arguments(arguments: list[str]) -> None:
    """Raise UserError for arguments that Hydra would refuse with a traceback."""
    for argument in arguments:
        if argument.startswith("="):
            raise UserError(f"{argument}: cannot be read as KEY=VALUE.")
    if {"-c", "--cfg"} & set(arguments) and {"-m", "--multirun"} & set(arguments):
        raise UserError(
            "--cfg shows the configuration of a single job: leave out -m and the values of the grid. To see the jobs "
            "of a sweep, use -m with hydra.launcher.dry_run=true."
        )


@contextmanager
def of_one_job() -> Iterator[None]:
    """`one_sentence` for a job. With Hydra's own launcher the other jobs still run; errors are shown at the end.

    A mistake must not reach Hydra, which would print the job's overrides.
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
