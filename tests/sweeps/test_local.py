"""A grid over the GPUs of a machine. There is none here: device numbers are made up, and workers run on the CPU."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tests.conftest import ROOT, untimed
from unlearn.sweeps import local
from unlearn.sweeps.local import spread, visible_devices
from unlearn.sweeps.sweep import Sweep

GRID = ("tracker=none", "eval.subset=12", "train.steps=2", "seed=0,1,2,3,4,5")


def test_devices_are_those_that_are_visible(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, MIG-a,")
    assert visible_devices() == ["3", "MIG-a"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_devices() == []


def test_jobs_are_spread_evenly_over_devices(conf):
    configs = {n: conf("eval=none", "tracker=none", f"seed={n}") for n in range(7)}
    assert spread(configs, 2) == [[0, 1, 2, 3], [4, 5, 6]]
    assert spread(configs, 3, pack_size=2) == [[0, 1], [2, 3], [4, 5], [6]]
    configs[7] = conf("eval=none", "tracker=none", "train.steps=9")
    assert spread(configs, 2)[-1] == [7]  # shares a process with no other


def launch(*overrides):
    command = [sys.executable, str(ROOT / "launch.py"), "-m", *GRID, *overrides]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("devices", "said"),
    [("[]", "there is no GPU here"), ("null", "there is no GPU here"), ("[0,0]", "each device once")],
)
def test_wrong_devices_are_refused(devices, said, tmp_path):
    done = launch("hydra/launcher=local", f"hydra.launcher.devices={devices}", f"output_root={tmp_path}")
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def python(tmp_path, monkeypatch):
    """The interpreter of workers: it notes device and jobs, and dies in the first part of jobs 3 to 5."""
    script = tmp_path / "python"
    script.write_text(
        f'#!/bin/sh\necho "$CUDA_VISIBLE_DEVICES $*" >> {tmp_path}/seen\n'
        f'case "$*" in *" 3,4,5") if mkdir {tmp_path}/once; then\n'
        f'  {sys.executable} "$@" & worker=$!\n'
        f"  while [ ! -e {tmp_path}/out/runs ]; do sleep 0.1; done; kill -9 $worker; kill -9 $$; fi;; esac\n"
        f'exec {sys.executable} "$@"\n'
    )
    script.chmod(0o755)
    monkeypatch.setattr(local, "sys", SimpleNamespace(executable=str(script), argv=sys.argv, exit=sys.exit))
    return tmp_path / "seen"


@pytest.mark.slow
def test_a_crash_on_one_device_leaves_the_others_and_the_grid_is_completed(tmp_path, python):
    """The first sweep composes the jobs and is stopped by an unknown device list; its folder is then run by hand."""
    options = (f"output_root={tmp_path / 'out'}", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    launch("hydra/launcher=local", "hydra.launcher.devices=[]", *options)
    sweep = Sweep.open(tmp_path / "sweep")
    configs = {number: sweep.config(number) for number in sweep.jobs}
    failed = local.run_on_devices(sweep, spread(configs, 2), ["5", "MIG-a"])
    assert set(failed) == {3, 4, 5}
    assert all("ended with signal 9" in why for why in failed.values())
    assert [state.name for state in sweep.states().values()] == ["done"] * 3 + ["failed"] * 3
    assert not local.run_on_devices(sweep, spread(configs, 2), ["5", "MIG-a"])
    assert {state.name for state in sweep.states().values()} == {"done"}
    seen = [line.split() for line in python.read_text().splitlines()]
    assert sorted((line[0], line[-1]) for line in seen[:2]) == [("5", "0,1,2"), ("MIG-a", "3,4,5")]
    packed = launch("hydra/launcher=packed", f"output_root={tmp_path / 'packed'}")
    assert packed.returncode == 0, packed.stderr
    for own in (tmp_path / "packed/runs").iterdir():
        other = tmp_path / "out/runs" / own.name
        found = [untimed(json.loads((folder / "metrics.json").read_text())) for folder in (own, other)]
        assert found[0] == found[1]
        assert (own / "delta.safetensors").read_bytes() == (other / "delta.safetensors").read_bytes()
