"""The origin of a run: the versions of the code and of packages, and the process and machine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from unlearn import __version__
from unlearn.storage import slurm_job

CODE = ("unlearn", "conf", "sweeps", "launch.py")  # what determines a run's results
NOT_CODE = "conf/hydra/launcher/cluster"  # settings of a cluster determine only where it runs


CODE_VERSION = "code.json"  # beside a sweep's copy of the code


PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "lm_eval", "hydra-core", "safetensors", "wandb")


def attempt() -> dict[str, Any]:
    """The place and time at which this process began to work on a run: an entry of `attempts` in run.json."""
    return {
        "began": time.time(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "slurm_job": slurm_job.job_id(),
        "slurm_restarts": slurm_job.restarts(),
    }


def package_versions() -> dict[str, str | None]:
    """The versions of `PACKAGES`; None for one that is not installed."""
    return {name: _package_version(name) for name in PACKAGES}


def _package_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def code_version() -> dict[str, Any]:
    """This package's version, and the commit of its checkout or of a sweep's copy of it."""
    root = Path(__file__).parents[2]
    if (root / CODE_VERSION).is_file():
        return json.loads((root / CODE_VERSION).read_text())

    def git(*args: str) -> str | None:
        try:
            ran = subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return ran.stdout.strip() if ran.returncode == 0 else None

    is_checkout = (root / "launch.py").is_file()  # not another repository with a virtual environment inside
    status = git("status", "--porcelain", "--", *CODE, f":(exclude){NOT_CODE}") if is_checkout else None
    return {
        "version": __version__,
        "commit": git("rev-parse", "HEAD") if is_checkout else None,
        "changed": bool(status) if status is not None else None,
    }
