"""A mistake of the user of `launch.py` ends it with one sentence."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException

from unlearn.cli.hints import explain
from unlearn.config.hydra_job import FULL_ERROR, raising_errors, users_environment
from unlearn.errors import UserError
from unlearn.screen import plain

MISTAKES = (UserError, HydraException, OmegaConfBaseException)

_failed_jobs: list[str] | None = None  # of Hydra's own launcher, with their mistakes; None: tracebacks are shown


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
    """The same inside a job. In a multirun of Hydra's own launcher the other jobs follow, and all is told at the end.

    Hydra prints the overrides of a job that raises an error, so a mistake must not reach it.
    """
    try:
        with users_environment():
            yield
    except MISTAKES as error:
        if _failed_jobs is None:
            raise
        hydra = HydraConfig.get()
        if hydra.mode != RunMode.MULTIRUN:
            sys.exit(plain(explain(error)))
        _failed_jobs.append(f"#{hydra.job.num} {' '.join(hydra.overrides.task)}: {explain(error)}")
