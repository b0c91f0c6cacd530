"""Which SLURM job this process is, read from its environment."""

from __future__ import annotations

import os


def job_id() -> str | None:
    """The SLURM job that this process is part of, as squeue names it: 12, or 12_3 in an array."""
    if "SLURM_ARRAY_TASK_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def restarts() -> int:
    """The number of times that SLURM has restarted this job."""
    return int(os.environ.get("SLURM_RESTART_COUNT", 0))
