"""The job that Hydra runs in this process: its configuration, and whether Hydra shows tracebacks.

Nothing else in the package reads Hydra's global state.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from unlearn.config.documents import check_documents
from unlearn.config.schema import Config
from unlearn.config.settle import settle
from unlearn.errors import UserError

FULL_ERROR = "HYDRA_FULL_ERROR"

_users_values: list[str | None] = []  # of HYDRA_FULL_ERROR, outside of each `raising_errors`


def to_config(raw: DictConfig, settle: Callable[[DictConfig], Config] = settle) -> tuple[Config, Path]:
    """The checked configuration, and the folder that holds Hydra's own files of this job.

    `settle` may do more than the function of that name: it is called in the folder where the command was started.
    Paths are relative to the folder where the command was started, also with hydra.job.chdir=true.

    Raises UserError for a bad configuration, and for a sweep or search without -m, which would run one job with the
    defaults.
    """
    hydra = HydraConfig.get()
    os.chdir(hydra.runtime.cwd)
    chosen = hydra.runtime.choices.get("sweep")
    if chosen is not None and hydra.mode == RunMode.RUN:
        raise UserError(f"sweep={chosen} needs -m (python launch.py -m sweep={chosen} ...).")
    if hydra.runtime.choices.get("hydra/sweeper") == "search" and hydra.mode == RunMode.RUN:
        raise UserError("hydra/sweeper=search needs -m (python launch.py -m hydra/sweeper=search ...).")
    config = settle(raw)
    check_documents(config)
    folder = Path(hydra.runtime.output_dir)
    if config.output_dir is None and any(o.startswith("hydra.run.dir=") for o in hydra.overrides.hydra):
        config.output_dir = str(folder)
    return config, folder


@contextmanager
def raising_errors() -> Iterator[None]:
    """Inside the block Hydra raises errors instead of printing them between lines of its own."""
    _users_values.append(os.environ.get(FULL_ERROR))
    _set("1")
    try:
        yield
    finally:
        _set(_users_values.pop())


@contextmanager
def users_environment() -> Iterator[None]:
    """Inside the block HYDRA_FULL_ERROR has the user's value, for SLURM jobs and other processes started there."""
    if not _users_values:
        yield
        return
    _set(_users_values[-1])
    try:
        yield
    finally:
        _set("1")


def _set(full_error: str | None) -> None:
    if full_error is None:
        os.environ.pop(FULL_ERROR, None)
    else:
        os.environ[FULL_ERROR] = full_error
