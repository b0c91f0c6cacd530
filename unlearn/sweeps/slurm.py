"""SLURM: whether it answers, its queue, how jobs ended, and submitting jobs through submitit.

Nothing heavy is imported here: a login node submits and watches, it does not compute.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unlearn.errors import UserError

CALL_TIMEOUT_S = 30  # a busy controller answers late
PING_TIMEOUT_S = 10  # without a cluster, scontrol may search for one for minutes
LARGEST_ARRAY = 1000  # SLURM's default MaxArraySize, less one


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


def submit(
    function: Callable[[list[int]], Any], groups: Sequence[list[int]], settings: Mapping[str, Any], code: Path
) -> list[str]:
    """Queue `function(group)` for each group, as an array of at most `LARGEST_ARRAY`; their SLURM ids, in order.

    Args:
        settings: of hydra-submitit-launcher's configuration (`conf/hydra/launcher/slurm.yaml`).
        code: the folder that jobs start in, and so import from before anywhere else.

    Raises UserError with sbatch's own words if it refuses.
    """
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    first = {"submitit_folder", "max_num_timeout", "python"}
    common = {"timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes", "name"}
    common |= {"stderr_to_stdout"}
    others = {k if k in common else f"slurm_{k}": v for k, v in settings.items() if k not in first}
    others["slurm_additional_parameters"] = {**settings["additional_parameters"], "chdir": str(code)}
    try:
        executor = submitit.AutoExecutor(
            folder=settings["submitit_folder"],
            cluster="slurm",
            slurm_max_num_timeout=settings["max_num_timeout"],
            slurm_python=settings["python"],
        )
        executor.update_parameters(**others)
        return [job.job_id for job in executor.map_array(function, groups)]
    except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError) as error:
        words = getattr(error, "stderr", None) or str(error)
        raise UserError(f"SLURM did not take {len(groups)} jobs. sbatch says: {str(words).strip()}") from error


def last_words(folder: str, task: str) -> str | None:
    """The last line that a job of `submitit_folder` wrote to its error log; None if there is none."""
    log = Path(folder.replace("%j", task)) / f"{task}_0_log.err"
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - 4096))
            lines = [line.strip() for line in stream.read().decode(errors="replace").splitlines()]
    except OSError:
        return None
    said = [line for line in lines if line and not line.startswith("srun:")]  # srun only reports the end
    return said[-1] if said else None


def _call(*command: str, timeout: float = CALL_TIMEOUT_S) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
