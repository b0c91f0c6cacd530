"""A grid over the GPUs of a machine. There is none here: devices are made up, and their processes run on the CPU."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT, assert_same_results, read_metrics, untimed
from unlearn.config.identity import run_folder
from unlearn.errors import UserError
from unlearn.experiment import run_together
from unlearn.models.devices import visible_devices
from unlearn.runs.folder import RunFolder
from unlearn.sweeps import local
from unlearn.sweeps.launchers import AutoLauncher
from unlearn.sweeps.local import chosen_devices, spread
from unlearn.sweeps.packs import packs
from unlearn.sweeps.sweep import Sweep

GRID = ("tracker=none", "eval.subset=15", "train.steps=12", "seed=0,1,2,3")
SLURM = {"pack_size": None, "wait": True, "dry_run": False, "python": None}  # keys of the default launcher
DEVICES = ("hydra/launcher=local", "hydra.launcher.devices=[5,7]")


@pytest.fixture
def machine(monkeypatch):
    """Sets how many GPUs CUDA shows, and CUDA_VISIBLE_DEVICES."""

    def be(count, listed=None):
        monkeypatch.setattr("torch.cuda.device_count", lambda: count)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if listed is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)

    return be


@pytest.mark.parametrize(
    ("count", "listed", "devices"),
    [
        (3, None, ["0", "1", "2"]),
        (2, "4, 5", ["4", "5"]),
        (1, "0,7", ["0"]),  # there is no number 7
        (1, "0,-1,1", ["0"]),
        (2, "GPU-a,GPU-b", ["GPU-a", "GPU-b"]),
        (1, "MIG-a,MIG-b", ["MIG-a", "MIG-b"]),  # a process sees one of them
        (0, "", []),
        (0, "-1", []),
        (0, None, []),
    ],
)
def test_devices_are_those_that_cuda_shows(count, listed, devices, machine):
    machine(count, listed)
    assert visible_devices() == devices


@pytest.mark.parametrize(
    ("count", "listed", "places", "devices"),
    [
        (3, None, None, ["0", "1", "2"]),
        (3, None, [2, 0], ["2", "0"]),
        (2, "4,5", None, ["4", "5"]),
        (2, "4,5", [1], ["5"]),  # a place among those that are visible
        (1, "MIG-a,MIG-b", [1], ["MIG-b"]),
        (0, None, [5, 7], ["5", "7"]),  # processes on the CPU
    ],
)
def test_chosen_devices_are_places_among_the_visible(count, listed, places, devices, machine):
    machine(count, listed)
    assert chosen_devices(places) == devices


@pytest.mark.parametrize(
    ("count", "listed", "places", "message"),
    [
        (2, None, [2], r"devices=\[2\] is not allowed: the GPUs here are 0, 1, each once\."),
        (2, None, [-1], r"devices=\[-1\] is not allowed"),
        (2, None, [1, 1], r"devices=\[1,1\] is not allowed"),
        (2, "4,5", [4], r"the GPUs here are 0, 1, each once \(CUDA_VISIBLE_DEVICES is '4,5'\)"),
        (0, "", [0], r"there is no GPU \(CUDA_VISIBLE_DEVICES is ''\)"),
        (0, None, None, r"devices=null is not allowed: there is no GPU\. hydra/launcher=packed"),
        (0, None, [], r"devices=\[\] is not allowed"),
    ],
)
def test_devices_that_are_not_there_are_refused(count, listed, places, message, machine):
    machine(count, listed)
    with pytest.raises(UserError, match=message):
        chosen_devices(places)


def test_jobs_are_spread_evenly_over_devices(short):
    configs = {n: short(f"seed={n}") for n in range(7)}
    assert spread(configs, 2) == [[0, 1, 2, 3], [4, 5, 6]]
    assert spread(configs, 3, pack_size=2) == [[0, 1], [2, 3], [4, 5], [6]]
    assert spread(configs, 9) == [[n] for n in range(7)]
    configs[7] = short("train.steps=9")
    assert spread(configs, 2)[-1] == [7]  # shares a process with no other
    with pytest.raises(ValueError, match=r"pack_size=0 is not allowed"):
        spread(configs, 2, pack_size=0)


def test_groups_stay_whole_where_each_device_gets_as_many(short):
    configs = {n: short(f"seed={n % 2}", f"train.steps={9 + n // 2}") for n in range(10)}
    assert spread(configs, 2) == [[0, 1], [2, 3], [4, 5], [6, 7], [8], [9]]
    assert spread(configs, 3) == [[0, 1], [2, 3], [4, 5], [6], [7], [8], [9]]
    assert spread({n: configs[n] for n in range(1, 10)}, 2)[-1] == [1]


def test_jobs_of_one_run_stay_in_one_process(short):
    points = (("rna=gaussian", 0), ("rna=gaussian", 0.1), ("rna=none", 0), ("rna=none", 0.2))
    configs = {n: short(rna, f"rna.nu={nu}") for n, (rna, nu) in enumerate(points)}
    assert run_folder(configs[0]) == run_folder(configs[2])
    assert spread(configs, 2) == [[0, 2, 1], [3]]
    assert spread(configs, 3) == packs(configs, 1) == [[0, 2], [1], [3]]


@pytest.mark.parametrize(
    ("count", "device", "jobs", "spread_out"),
    [(2, "auto", 2, True), (1, "auto", 2, False), (2, "cpu", 2, False), (2, "auto", 1, False), (0, "auto", 2, False)],
)
def test_without_slurm_several_gpus_are_the_default(count, device, jobs, spread_out, machine, short):
    machine(count, "0,1")  # the variable alone makes no GPUs
    launcher = AutoLauncher(**SLURM)
    launcher.configs = {n: short(f"seed={n}", f"model.device={device}") for n in range(jobs)}
    assert launcher._on_several(list(launcher.configs)) == spread_out


def start(*overrides):
    """A grid's launcher, and its lines."""
    command = [sys.executable, str(ROOT / "launch.py"), "-m", *overrides]
    quiet = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    return subprocess.Popen(command, cwd=ROOT, env=quiet, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def launch(*overrides):
    process = start(*overrides)
    said, told = process.communicate()
    return process.returncode, said + told


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("hydra.launcher.devices=0", "hydra.launcher.devices=0: Invalid value assigned: int is not a ListConfig"),
        ("hydra.launcher.pack_size=x", "hydra.launcher.pack_size=x: Value 'x' of type 'str' could not be"),
        ("model.device=cuda:1", "model.device=cuda:1: with hydra/launcher=local each process sees one device."),
    ],
)
def test_a_mistake_is_told_before_a_process_starts(override, told, tmp_path):
    code, said = launch(*DEVICES, *GRID, override, f"output_root={tmp_path}")
    assert code == 1
    assert told in said
    assert "Traceback" not in said
    assert not list(tmp_path.rglob("*.log"))


@pytest.fixture
def two_jobs(short, tmp_path):
    sweep = Sweep(tmp_path / "sweep")
    for number in range(2):
        config = short(f"seed={number}")
        sweep.add(number, [f"seed={number}"], config, tmp_path / "sweep" / str(number))
    sweep.write()
    return sweep


@pytest.mark.slow  # alone starts a process for a GPU that is not there
def test_a_process_that_does_not_see_its_gpu_does_not_use_the_cpu_instead(two_jobs, machine):
    machine(2)
    failed = local.run_on_devices(two_jobs, [[0], [1]], ["0", "1"])
    assert failed.keys() == {0, 1}
    assert "its process on device 1 was ended with exit status 1" in failed[1]
    assert "CUDA finds no device 1." in (two_jobs.folder / "logs/1.log").read_text()
    assert two_jobs.states()[1].detail == failed[1]


@pytest.mark.slow  # alone starts a process for each device by default
def test_the_default_launcher_spreads_the_jobs(two_jobs, short, machine):
    machine(2)
    launcher = AutoLauncher(**SLURM | {"pack_size": 3})
    launcher.on_slurm = False
    launcher.configs = {n: short(f"seed={n}") for n in range(2)}
    failed = launcher.run(two_jobs, [0, 1])
    assert (two_jobs.launcher, two_jobs.settings) == ("local", {"devices": None, "pack_size": 3})
    assert "on device 0 " in failed[0]
    assert "on device 1 " in failed[1]


def worker_of(launcher, device, runs):
    """The process of a device, as soon as it trains."""
    while True:
        assert launcher.poll() is None, launcher.communicate()
        for log in (log for log in runs.glob("*/train.jsonl") if log.stat().st_size):
            attempt = RunFolder(log.parent).last_attempt
            if attempt["gpus"] == device:
                return psutil.Process(attempt["pid"])
        time.sleep(0.05)


def devices_of(sweep):
    """The device on which each job was run last."""
    return [RunFolder(Path(job.folder)).last_attempt["gpus"] for job in sweep.jobs.values()]


def assert_equal_runs(runs, others):
    assert {run.name for run in runs.iterdir()} == {run.name for run in others.iterdir()}
    for run in runs.iterdir():
        other = others / run.name
        found = [untimed(read_metrics(folder)) for folder in (run, other)]
        assert found[0] == found[1]
        assert (run / "delta.safetensors").read_bytes() == (other / "delta.safetensors").read_bytes()
        assert_same_results(run, other)


@pytest.mark.slow
def test_a_process_that_dies_fails_alone_and_the_same_command_completes_the_grid(conf, tmp_path):
    runs = tmp_path / "runs"
    launcher = start(*DEVICES, *GRID, f"output_root={tmp_path}", f"hydra.sweep.dir={tmp_path / '1'}")
    worker_of(launcher, "7", runs).kill()
    _, told = launcher.communicate()
    assert launcher.returncode == 1
    log = tmp_path / "1/logs/2.log"
    assert f"Device 5: #0, #1 started; output: {tmp_path / '1/logs/0.log'}" in told
    assert "Device 5: #0, #1 done" in told
    assert f"Device 7: #2, #3 failed; output: {log}" in told
    assert "2 of 4 jobs failed:" in told
    assert f"#2 and 1 more: its process on device 7 was ended by SIGKILL; output: {log}" in told
    sweep = Sweep.open(tmp_path / "1")
    assert [state.name for state in sweep.states().values()] == ["done", "done", "failed", "failed"]
    assert devices_of(sweep) == ["5", "5", "7", "7"]
    model = RunFolder(Path(sweep.jobs[0].folder)).record["config"]["model"]["path"]
    assert Path(model).is_relative_to(tmp_path / "1/code")  # the copy of the code is what runs
    code, said = launch(*DEVICES, *GRID, f"output_root={tmp_path}", f"hydra.sweep.dir={tmp_path / '2'}")
    assert code == 0, said
    assert "#1 is finished: nothing to do" in said
    again = Sweep.open(tmp_path / "2")
    assert {state.name for state in again.states().values()} == {"done"}
    assert devices_of(again) == ["5", "5", "5", "7"]  # what is left is spread over both
    asked = [log.read_text().count("Evaluating the base model") for log in (tmp_path / "1/logs").iterdir()]
    assert sum(asked) == 1
    here = [conf(*GRID[:-1], f"seed={seed}", f"output_root={tmp_path / 'here'}") for seed in range(4)]
    assert all(outcome.error is None for outcome in run_together(here))
    assert_equal_runs(tmp_path / "here/runs", runs)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_processes_end_with_their_launcher_and_a_retry_spreads_the_rest(how, tmp_path):
    quick = ("tracker=none", "eval=none", "train.steps=50", "train.checkpoint_every=10", "seed=0,1,2")
    one_by_one = ("hydra.launcher.pack_size=1", f"output_root={tmp_path}", f"hydra.sweep.dir={tmp_path / 's'}")
    launcher = start(*DEVICES, *quick, *one_by_one)
    workers = []
    for device in ("5", "7"):
        workers.append(worker_of(launcher, device, tmp_path / "runs"))
        workers[-1].suspend()  # it waits until the other one trains, too
    for worker in workers:
        worker.resume()
    launcher.send_signal(how)
    _, told = launcher.communicate()
    psutil.wait_procs(workers)
    sweep = Sweep.open(tmp_path / "s")
    assert [state.name for state in sweep.states().values()] == ["interrupted", "interrupted", "missing"]
    if how == signal.SIGKILL:
        return
    assert launcher.returncode == 1
    assert f"The same command goes on, and so does unlearn status --retry {tmp_path / 's'}" in told
    assert "Traceback" not in told
    retry = subprocess.run(
        [sys.executable, "-m", "unlearn", "status", "--retry", "--allow-code", str(tmp_path / "s")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert retry.returncode == 0, retry.stdout + retry.stderr
    assert set(devices_of(sweep)) == {"5", "7"}
