"""The edge to Hydra for `launch.py`: the only file that reads Hydra's global state."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from unlearn.cli.hints import explain
from unlearn.config.schema import Config
from unlearn.config.settle import settle
from unlearn.errors import UserError
from unlearn.screen import plain

FULL_ERROR = "HYDRA_FULL_ERROR"
MISTAKES = (UserError, HydraException, OmegaConfBaseException)


@dataclass
class _Hiding:
    """What `one_sentence` keeps while it hides tracebacks."""

    before: str | None  # HYDRA_FULL_ERROR as the user has it
    failed: list[str] = field(default_factory=list)  # jobs of Hydra's own launcher, with their mistakes


_hiding: _Hiding | None = None  # None: tracebacks are shown


def to_config(raw: DictConfig) -> tuple[Config, Path]:
    """The checked configuration, and the folder that holds Hydra's own files of this job.

    Raises UserError for what is wrong with it, and for a sweep without -m, which would be one job of the defaults.
    """
    hydra = HydraConfig.get()
    chosen = hydra.runtime.choices.get("sweep")
    if chosen is not None and hydra.mode == RunMode.RUN:
        raise UserError(f"sweep={chosen} needs -m (python launch.py -m sweep={chosen} ...).")
    config = settle(raw)
    folder = Path(hydra.runtime.output_dir)
    if config.output_dir is None and any(o.startswith("hydra.run.dir=") for o in hydra.overrides.hydra):
        config.output_dir = str(folder)
    return config, folder


@contextmanager
def one_sentence() -> Iterator[None]:
    """A user's mistake inside the block ends the process with one sentence and exit status 1.

    Hydra prints errors itself, with lines before and after, unless HYDRA_FULL_ERROR is set: then it raises them. So
    it is set here. If the user has set it, everything is raised.
    """
    global _hiding
    before = os.environ.get(FULL_ERROR)
    if before == "1":
        yield
        return
    os.environ[FULL_ERROR] = "1"
    _hiding = _Hiding(before)
    try:
        for nameless in (argument for argument in sys.argv[1:] if argument.startswith("=")):
            raise UserError(f"{nameless}: cannot be read as KEY=VALUE.")  # Hydra ends in a traceback
        yield
        if _hiding.failed:
            sys.exit(plain("\n  ".join(["Failed jobs:", *_hiding.failed])))
    except MISTAKES as error:
        sys.exit(plain(explain(error)))
    finally:
        _hiding = None
        _set(before)


@contextmanager
def of_one_job() -> Iterator[None]:
    """The same inside a job. In a multirun of Hydra's own launcher the other jobs follow, and all is told at the end.

    Hydra prints the overrides of a job that raises an error, so a mistake must not reach it.
    """
    try:
        with users_environment():
            yield
    except MISTAKES as error:
        if _hiding is None:
            raise
        hydra = HydraConfig.get()
        if hydra.mode != RunMode.MULTIRUN:
            sys.exit(plain(explain(error)))
        _hiding.failed.append(f"#{hydra.job.num} {' '.join(hydra.overrides.task)}: {explain(error)}")


@contextmanager
def users_environment() -> Iterator[None]:
    """Inside the block HYDRA_FULL_ERROR is as the user has it: for SLURM jobs and whatever else is started there."""
    if _hiding is None:
        yield
        return
    _set(_hiding.before)
    try:
        yield
    finally:
        _set("1")


def _set(full_error: str | None) -> None:
    if full_error is None:
        os.environ.pop(FULL_ERROR, None)
    else:
        os.environ[FULL_ERROR] = full_error
