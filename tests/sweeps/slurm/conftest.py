"""One cluster for all tests of this folder, and an empty queue for each."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.sweeps.slurm.lab import Lab

# What this cluster has; a job of a few seconds.
SMALL = ("hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=3", "tracker=none")
Launch = Callable[..., subprocess.Popen]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("lab"))
    try:
        lab.start()
        yield lab
    finally:
        lab.stop()


@pytest.fixture
def lab(cluster: Lab) -> Iterator[Lab]:
    yield cluster
    cluster.clear()


@pytest.fixture
def launch(lab: Lab, tmp_path: Path) -> Iterator[Launch]:
    """`python launch.py -m ...` in the background, with outputs below tmp_path/outputs."""
    with launching(tmp_path / "outputs") as begin:
        yield begin


@contextmanager
def launching(outputs: Path) -> Iterator[Launch]:
    """A function that starts sweeps in the background, by default with outputs in this folder."""
    started = []

    def begin(*arguments: str, root: Path = ROOT) -> subprocess.Popen:
        output = () if any(a.startswith("output_root=") for a in arguments) else (f"output_root={outputs}",)
        command = [sys.executable, "launch.py", "-m", *SMALL, *output, *arguments]
        environment = os.environ | {"WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
        started.append(
            subprocess.Popen(
                command, cwd=root, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        )
        return started[-1]

    try:
        yield begin
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
                process.wait()
