"""Submitting a sweep's jobs to SLURM, with a copy of the code that they run."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from itertools import chain, count
from pathlib import Path
from typing import Any

from unlearn.runs.provenance import CODE, CODE_VERSION, code_version
from unlearn.storage.files import write_json
from unlearn.sweeps import slurm
from unlearn.sweeps.sweep import Sweep
from unlearn.sweeps.worker import RunJobs

ROOT = Path(__file__).parents[2]


def submit(sweep: Sweep, groups: list[list[int]], settings: Mapping[str, Any]) -> None:
    """Submit groups of a sweep's jobs, each as one job or array task. Raises UserError if SLURM refuses.

    Args:
        settings: see `slurm.submit`. They are kept in sweep.json, for a later retry.
    """
    sweep.launcher = dict(settings)
    code = Path(copy_code(sweep))
    for start in range(0, len(groups), slurm.LARGEST_ARRAY):
        array = groups[start : start + slurm.LARGEST_ARRAY]
        ids = slurm.submit(RunJobs(sweep.folder), array, settings, code)
        sweep.tasks |= {number: task for group, task in zip(array, ids, strict=True) for number in group}
        sweep.write()  # after each array, so that no queued job is unknown


def copy_code(sweep: Sweep) -> str:
    """The path of the sweep's copy of code and configuration, which is made now, in its folder, if there is none."""
    sweep.code = sweep.code or _copy_code(sweep.folder)
    sweep.write()
    return sweep.code


def _copy_code(folder: Path) -> str:
    names = chain(["code"], (f"code-{n}" for n in count(2)))
    copy = next(folder / name for name in names if not (folder / name).exists())
    for name in CODE:
        source, target = ROOT / name, copy / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.is_file():
            shutil.copy2(source, target)
    write_json(copy / CODE_VERSION, code_version())
    return str(copy)
