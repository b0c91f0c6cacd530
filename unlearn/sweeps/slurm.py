"""SLURM: whether it answers, its queue, how jobs ended, and submitting jobs through submitit.

Nothing heavy is imported here: a login node submits and watches, it does not compute.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearn.errors import UserError
from unlearn.screen import say

CALL_TIMEOUT_S = 30  # a busy controller answers late
PING_TIMEOUT_S = 10  # without a cluster, scontrol may search for one for minutes
LARGEST_ARRAY = 1000  # tasks, where SLURM does not say; its default MaxArraySize is 1001
PATIENCE_S = 5.0  # sbatch tries again for up to a minute while SLURM's queue is full, and says so only at the end
RENAMED = {"name": "job_name", "timeout_min": "time", "tasks_per_node": "ntasks_per_node"}  # submitit's own names
NOT_OF_SBATCH = ("submitit_folder", "max_num_timeout", "python", "mem_gb")


def answers() -> bool:
    """Whether a cluster answers. An installed sbatch is not enough."""
    ran = _call("scontrol", "ping", timeout=PING_TIMEOUT_S)
    return ran is not None and ran.returncode == 0 and "is UP" in ran.stdout


def queue(tasks: Iterable[str]) -> dict[str, str] | None:
    """The states of these jobs or array tasks that are pending or running; None if SLURM does not answer.

    A pending one has SLURM's reason, for example "PENDING (Resources)".
    """
    numbers = sorted({task.partition("_")[0] for task in tasks})
    if not numbers:
        return {}
    ran = _call("squeue", "--noheader", "--array", "--jobs", ",".join(numbers), "--format", "%i|%T|%r")
    if ran is None:
        return None
    if ran.returncode != 0:  # SLURM forgets a job some minutes after its end
        return {} if "Invalid job id" in ran.stderr else None
    rows = (line.split("|", 2) for line in ran.stdout.splitlines() if line)
    return {task: state if reason in ("", "None") else f"{state} ({reason})" for task, state, reason in rows}


def endings(tasks: Iterable[str]) -> dict[str, str]:
    """How jobs ended (TIMEOUT, NODE_FAIL, CANCELLED by 0, ...), as far as SLURM's accounting knows."""
    wanted = ",".join(sorted(tasks))
    if not wanted:
        return {}
    ran = _call("sacct", "--noheader", "--parsable2", "--allocations", "--jobs", wanted, "--format", "JobID,State")
    if ran is None or ran.returncode != 0:
        return {}
    return dict(line.split("|", 1) for line in ran.stdout.splitlines() if "|" in line)


@dataclass(frozen=True)
class Limits:
    """The most tasks of an array, and the most jobs and array tasks that SLURM holds (None: not known)."""

    array: int = LARGEST_ARRAY
    jobs: int | None = None


def limits() -> Limits:
    """The limits of this cluster, as far as its configuration can be read."""
    ran = _call("scontrol", "show", "config")
    shown = "" if ran is None else ran.stdout
    limits_set = {name: int(limit) for name, limit in re.findall(r"^(Max\w+)\s*=\s*(\d+)", shown, re.MULTILINE)}
    return Limits(max(1, limits_set.get("MaxArraySize", LARGEST_ARRAY)), limits_set.get("MaxJobCount"))


def submit(
    function: Callable[[list[int]], Any], groups: Sequence[list[int]], settings: Mapping[str, Any], code: Path
) -> list[str]:
    """Queue `function(group)` for each group, as one job or array; returns their SLURM ids, in order.

    Args:
        settings: of hydra-submitit-launcher's configuration (`conf/hydra/launcher/slurm.yaml`).
        code: the folder that jobs start in, and so import from before anywhere else.

    Raises UserError with sbatch's own words if it refuses.
    """
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    late = threading.Timer(
        PATIENCE_S, say, ["SLURM has not taken the jobs yet; sbatch tries again for up to a minute."]
    )
    late.daemon = True
    late.start()
    try:
        executor = SlurmExecutor(settings["submitit_folder"], settings["max_num_timeout"], python=settings["python"])
        executor.update_parameters(**_parameters(settings, code))
        return [job.job_id for job in executor.map_array(function, groups)]
    except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError) as error:
        words = getattr(error, "stderr", None) or str(error)
        raise UserError(f"SLURM did not take {len(groups)} jobs. sbatch says: {str(words).strip()}") from error
    finally:
        late.cancel()


def script(jobs: int, settings: Mapping[str, Any], code: Path) -> str:
    """The sbatch script with which `submit` would queue so many groups. No cluster is needed."""
    from submitit.slurm.slurm import _make_sbatch_string

    folder = settings["submitit_folder"]
    python = settings["python"] or shlex.quote(sys.executable)
    command = f"{python} -u -m submitit.core._submit {shlex.quote(folder)}"
    map_count = jobs if jobs > 1 else None
    return _make_sbatch_string(command, folder, map_count=map_count, **_parameters(settings, code))


def _parameters(settings: Mapping[str, Any], code: Path) -> dict[str, Any]:
    """The settings under submitit's names."""
    parameters = {RENAMED.get(key, key): value for key, value in settings.items() if key not in NOT_OF_SBATCH}
    parameters["additional_parameters"] = {**settings["additional_parameters"], "chdir": str(code)}
    if settings["mem_gb"] is not None:
        parameters["mem"] = f"{settings['mem_gb']}GB"
    return parameters


def last_line(folder: str, task: str) -> str | None:
    """The last line that a job of `submitit_folder` wrote to its error log; None if there is none."""
    log = Path(folder.replace("%j", task)) / f"{task}_0_log.err"
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - 4096))
            lines = [line.strip() for line in stream.read().decode(errors="replace").splitlines()]
    except OSError:
        return None
    lines = [line for line in lines if line and not line.startswith("srun:")]  # srun only reports the end
    return lines[-1] if lines else None


def _call(*command: str, timeout: float = CALL_TIMEOUT_S) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
