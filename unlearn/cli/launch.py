"""The edge to Hydra for `launch.py`: the only file that reads Hydra's global state."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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

FULL_ERROR = "HYDRA_FULL_ERROR"
_hidden = False  # whether `one_sentence` hides tracebacks


def to_config(raw: DictConfig) -> tuple[Config, Path]:
    """The checked configuration, and the folder that holds Hydra's own files of this job."""
    hydra = HydraConfig.get()
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
    global _hidden
    if os.environ.get(FULL_ERROR) == "1":
        yield
        return
    os.environ[FULL_ERROR] = "1"
    _hidden = True
    try:
        yield
    except UserError as error:
        sys.exit(str(error))
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(explain(error))
    finally:
        _hidden = False
        os.environ.pop(FULL_ERROR, None)


@contextmanager
def of_one_job() -> Iterator[None]:
    """The same inside a job. Only in a multirun of Hydra's own launcher is the error raised: other jobs then follow.

    Hydra prints the overrides of a job that raises an error, so a single run must not raise it.
    """
    try:
        yield
    except UserError as error:
        if not _hidden or HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        sys.exit(str(error))
