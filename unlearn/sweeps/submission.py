"""Submitting a sweep's jobs to SLURM, with a copy of the code that they run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from filecmp import cmp
from itertools import count
from pathlib import Path
from typing import Any

from unlearn.config.recorded import PACKAGE
from unlearn.errors import UserError
from unlearn.runs.provenance import CODE_VERSION, code_version
from unlearn.storage.files import write_json
from unlearn.sweeps import slurm
from unlearn.sweeps.sweep import Sweep
from unlearn.sweeps.worker import RunJobs

PACKED = "hydra/launcher=slurm_packed puts several runs into a job, and hydra.launcher.pack_size says how many."


def submit(sweep: Sweep, groups: list[list[int]], settings: Mapping[str, Any]) -> None:
    """Submit groups of a sweep's jobs, each as one job or array task. Raises UserError if SLURM refuses.

    Args:
        settings: see `slurm.submit`. They are kept in sweep.json, for a later retry.
    """
    limits = slurm.limits()
    if limits.jobs is not None and len(groups) > limits.jobs:
        raise UserError(
            f"These are {len(groups)} SLURM jobs, but this cluster holds {limits.jobs} at most (MaxJobCount). None is "
            f"queued. {PACKED}"
        )
    sweep.launcher, sweep.settings = "slurm", dict(settings)
    code = Path(copy_code(sweep))
    queued: list[str] = []
    for array in _arrays(groups, limits.array):
        try:
            ids = slurm.submit(RunJobs(sweep.folder), array, settings, code)
        except UserError as error:
            raise UserError(f"{error}\n{_advice(sweep, queued)}") from error
        queued += ids
        sweep.tasks |= {number: task for group, task in zip(array, ids, strict=True) for number in group}
        sweep.write()  # after each array, so that no queued job is unknown


def _advice(sweep: Sweep, queued: list[str]) -> str:
    """What can be done where SLURM took only the first jobs, or none."""
    first = f"{len(queued)} jobs are queued and go on: unlearn status {sweep.folder}\n" if queued else ""
    return (
        f"{first}If it is a limit on the number of jobs (scontrol show config: MaxJobCount, MaxArraySize; sacctmgr: "
        f"MaxSubmitJobs): {PACKED} The same command later submits what is not finished."
    )


def describe_submission(sweep: Sweep, groups: list[list[int]], settings: Mapping[str, Any]) -> str:
    """The sbatch scripts that `submit` would submit, and which jobs of the sweep are in which SLURM job."""
    code, parts = _next_copy(sweep.folder), []
    for array in _arrays(groups, slurm.limits().array):
        parts.append(slurm.script(len(array), settings, code))
        for task, group in enumerate(array):
            name = f"array task {task}" if len(array) > 1 else "the job"
            parts += [f"# {name}:", *(f"#   #{number} {sweep.label(number)}" for number in group)]
        parts.append("")
    return "\n".join([*parts, f"Dry run: {len(groups)} SLURM jobs, and none of them is submitted."])


def _arrays(groups: list[list[int]], size: int) -> list[list[list[int]]]:
    return [groups[start : start + size] for start in range(0, len(groups), size)]


def copy_code(sweep: Sweep) -> str:
    """The path of the sweep's copy of code and configuration. It is made now, in its folder, if there is none."""
    if sweep.code is None:
        copy = _next_copy(sweep.folder)
        _copy_code(copy)
        sweep.code = copy.name
    sweep.write()
    return str(sweep.folder / sweep.code)


def has_this_code(sweep: Sweep) -> bool:
    """Whether the sweep's copy of the code has the same files as this package."""
    theirs, ours = (_files(top) for top in (sweep.folder / str(sweep.code) / PACKAGE.name, PACKAGE))
    return theirs.keys() == ours.keys() and all(cmp(theirs[name], ours[name], shallow=False) for name in ours)


def leave_other_code(sweep: Sweep) -> None:
    """Where the sweep's copy of the code differs from this package, its next jobs get a new copy."""
    if sweep.code is not None and not has_this_code(sweep):
        sweep.code = None
        sweep.write()


def _files(top: Path) -> dict[str, Path]:
    """The files below a folder, which may be links, by their paths in it."""
    places = ((Path(place), names) for place, _, names in os.walk(top, followlinks=True))
    files = (place / name for place, names in places for name in names if place.name != "__pycache__")
    return {str(file.relative_to(top)): file for file in files}


def _next_copy(folder: Path) -> Path:
    copies = (folder / (f"code-{n}" if n > 1 else "code") for n in count(1))
    return next(copy for copy in copies if not copy.exists())


def _copy_code(copy: Path) -> None:
    shutil.copytree(PACKAGE, copy / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    write_json(copy / CODE_VERSION, code_version())
