"""Sweeps on a real SLURM: what is submitted, what survives, what is said. `make test-slurm`."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from tests.conftest import ROOT, assert_same_results, read_jsonl, read_metrics, untimed
from tests.sweeps.slurm.conftest import SMALL, launching
from tests.sweeps.slurm.lab import wait
from unlearn.config.identity import run_folder
from unlearn.experiment import run
from unlearn.storage.hold import LOCK
from unlearn.sweeps.search.study import FOLDERS, read_study
from unlearn.sweeps.slurm import queue
from unlearn.sweeps.sweep import Sweep

pytestmark = pytest.mark.slurm
EVERY, STEPS = 10, 160  # after the first checkpoint, SLURM needs some seconds to end a job
SHORT = ("train.steps=4", "eval=none")
LONG = (f"train.steps={STEPS}", f"train.checkpoint_every={EVERY}", "eval=toy", "eval.limit=4")
MINUTES = 240  # seconds that anything here may take before it counts as hanging


def ended(process):
    """Exit status and all output of a launcher."""
    output, _ = process.communicate(timeout=600)
    return process.returncode, output


def the_sweep(output_root):
    [folder] = (output_root / "sweeps").glob("*/*")
    return Sweep.open(folder)


def folders(conf, output_root, points, *overrides):
    return [run_folder(conf(*overrides, *point, "tracker=none", f"output_root={output_root}")) for point in points]


def status_of(folder):
    return json.loads((folder / "run.json").read_text())["status"]


def attempts_of(folder):
    file = folder / "run.json"
    return json.loads(file.read_text())["attempts"] if file.exists() else []


def equal_runs(a, b):
    """Delta and samples byte for byte, losses and metrics to the last digit."""
    assert (a / "delta.safetensors").read_bytes() == (b / "delta.safetensors").read_bytes()
    assert [untimed(x) for x in read_jsonl(a / "train.jsonl")] == [untimed(x) for x in read_jsonl(b / "train.jsonl")]
    one, other = (untimed(read_metrics(f)) for f in (a, b))
    assert one == other
    assert_same_results(a, b)


@pytest.fixture(scope="session")
def whole(tmp_path_factory, conf):
    """The uninterrupted run of LONG, in this process."""
    return run(conf(*LONG, "tracker=none", f"output_root={tmp_path_factory.mktemp('whole')}"))


@pytest.fixture
def training(launch, conf, tmp_path):
    """A sweep of one LONG run that has written a checkpoint: launcher, run folder."""

    def begin(*more):
        process = launch(*LONG, *more)
        [folder] = folders(conf, tmp_path / "outputs", [()], *LONG)
        wait((folder / "checkpoint.safetensors").exists, "a checkpoint", MINUTES)
        return process, folder

    return begin


def survived(process, folder, whole, interruptions=1):
    """The launcher ends well, and the run is the uninterrupted one."""
    code, output = ended(process)
    assert code == 0, output
    equal_runs(folder, whole)
    record = json.loads((folder / "run.json").read_text())
    assert len(record["attempts"]) == interruptions + 1
    assert not (folder / "checkpoint.safetensors").exists()
    assert list(folder.glob(f"{LOCK}*")) == []


@pytest.fixture(scope="module")
def four_points(cluster, tmp_path_factory):
    """A sweep of four jobs, of which the second fails: output_root, exit status, output, its tasks."""
    root = tmp_path_factory.mktemp("four_points")
    with launching(root) as launch:
        return root, *ended(launch("method.c=2,1e30,3,4", *SHORT)), the_sweep(root).tasks


@pytest.fixture
def runs_of_four_points(four_points, conf):
    return folders(conf, four_points[0], [(f"method.c={c}",) for c in ("2", "1e30", "3", "4")], *SHORT)


def test_a_point_that_fails_is_told_and_the_others_are_done(lab, four_points, runs_of_four_points):
    _, code, output, tasks = four_points
    assert code == 1
    first = output.splitlines()[0]
    assert "hydra/launcher=auto: SLURM answers" in first
    assert "1 of 4 jobs failed:" in output
    assert "#1 method.c=1e+30" in output
    assert "the loss became" in output
    assert [status_of(folder) for folder in runs_of_four_points] == ["done", "failed", "done", "done"]
    job = tasks[0].partition("_")[0]
    wait(lambda: sorted(lab.states(job)) == [*["COMPLETED"] * 3, "FAILED"], "the accounting", 30)
    assert all((folder / ".hydra/overrides.yaml").is_file() for folder in runs_of_four_points)


def test_two_gpus_two_jobs_at_a_time_each_with_its_own(runs_of_four_points):
    attempts = [attempts_of(folder)[0] for folder in runs_of_four_points]
    assert {a["gpus"] for a in attempts} == {"0", "1"}
    for gpu in "01":  # nobody shares a GPU
        mine = sorted((a["began"], a["until"]) for a in attempts if a["gpus"] == gpu)
        assert all(end <= begin for (_, end), (begin, _) in pairwise(mine))


def test_a_half_done_grid_runs_only_what_is_missing(lab, launch, four_points, runs_of_four_points):
    root = f"output_root={four_points[0]}"
    before = (runs_of_four_points[0] / "run.json").read_bytes()
    code, output = ended(launch("method.c=2,5", *SHORT, root))
    assert code == 0, output
    assert "#0 is finished: nothing to do" in output
    assert "Submitted 1 SLURM jobs" in output
    assert (runs_of_four_points[0] / "run.json").read_bytes() == before
    code, output = ended(launch("method.c=2,5", *SHORT, root))
    assert code == 0
    assert "Submitted" not in output


def test_a_packed_sweep_is_one_job_and_its_runs_are_as_if_alone(lab, launch, conf, tmp_path, whole):
    code, output = ended(launch("hydra/launcher=slurm_packed", "seed=0,1", *LONG))
    assert code == 0, output
    assert "Submitted 1 SLURM jobs" in output
    runs = folders(conf, tmp_path / "outputs", [("seed=0",), ("seed=1",)], *LONG)
    equal_runs(runs[0], whole)
    assert {json.loads((f / "run.json").read_text())["attempts"][0]["slurm_job"] for f in runs} == {
        the_sweep(tmp_path / "outputs").tasks[0]
    }


def test_a_search_queues_a_generation_when_the_one_before_has_ended(lab, launch, tmp_path):
    how = ("method=rmu", "rna.nu=interval(0,1)", "train.steps=2", "eval=toy", "eval.limit=4")
    searching = ("hydra/launcher=slurm_packed", "hydra/sweeper=search", "search.trials=4", "search.generation=2")
    code, output = ended(launch(*searching, *how))
    assert code == 0, output
    assert output.count("Submitted 1 SLURM jobs") == 2
    [folder] = (tmp_path / "outputs/searches").iterdir()
    trials = read_study(folder).get_trials()
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 4
    tasks = [{attempts_of(Path(run))[0]["slurm_job"] for run in t.user_attrs[FOLDERS]} for t in trials]
    assert tasks[0] == tasks[1] != tasks[2] == tasks[3]


def test_methods_on_likelihoods_are_trained_evaluated_and_attacked_there(lab, launch, conf, tmp_path):
    how = ("train.steps=2", "eval=toy", "eval.limit=2", "attacks=[pruning]")
    code, output = ended(launch("method=npo,dpo", *how))
    assert code == 0, output
    for folder in folders(conf, tmp_path / "outputs", [("method=npo",), ("method=dpo",)], *how):
        assert status_of(folder) == "done"
        names = {file.name.partition("-")[0] for file in (folder / "attacks").iterdir()}
        assert names == {"none", "pruning"}


def test_preemption(lab, training, whole):
    process, folder = training(f"train.steps={STEPS},2")  # tasks of an array
    lab.ask("sbatch", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=sleep 3")
    survived(process, folder, whole)


def test_scontrol_requeue(lab, training, whole):
    process, folder = training()
    task = attempts_of(folder)[0]["slurm_job"]
    lab.ask("scontrol", "requeue", task)
    survived(process, folder, whole)


def test_the_time_limit(lab, training, whole):
    """The job stands still until SLURM wakes it and says that its time is nearly over. The next attempt has no limit.

    A limit from the start would meet imports that take long beside other tests, before anything hears the signal.
    """
    began = time.monotonic()
    process, folder = training("hydra.launcher.signal_delay_s=15")
    [first] = attempts_of(folder)
    job = first["slurm_job"]
    os.kill(first["pid"], signal.SIGSTOP)
    minutes = int((time.monotonic() - began) / 60) + 2
    assert lab.ask("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}").returncode == 0
    wait(lambda: "Restarts=1" in lab.ask("scontrol", "show", "job", job).stdout, "the job in the queue again", MINUTES)
    assert lab.ask("scontrol", "update", f"JobId={job}", "TimeLimit=UNLIMITED").returncode == 0
    survived(process, folder, whole)


def test_sigkill_and_scancel_are_noticed_and_a_retry_goes_on(lab, training, whole):
    process, folder = training()
    os.kill(attempts_of(folder)[0]["pid"], signal.SIGKILL)
    code, output = ended(process)
    assert code == 1
    assert "SLURM: FAILED" in output
    before = (folder / "checkpoint.safetensors").stat().st_mtime_ns
    second = retried(folder)
    wait(lambda: (folder / "checkpoint.safetensors").stat().st_mtime_ns > before, "another checkpoint", MINUTES)
    lab.ask("scancel", second)
    wait(lambda: queue([second]) == {}, "the end of the second job", MINUTES)
    shown = status(folder)
    assert shown.returncode == 1
    assert "SLURM: CANCELLED" in shown.stdout
    third = retried(folder)
    wait(lambda: queue([third]) == {}, "the end of the third job", MINUTES)
    equal_runs(folder, whole)
    assert status(folder).returncode == 0


def status(folder, *more):
    """`unlearn status` of the sweep of this run."""
    command = [sys.executable, "-m", "unlearn", "status", str(the_sweep(folder.parent.parent).folder), *more]
    return subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)


def retried(folder):
    """`unlearn status --retry --allow-code` queues the interrupted run again: the new SLURM job."""
    before = the_sweep(folder.parent.parent).tasks[0]
    shown = status(folder, "--retry", "--allow-code")
    assert shown.returncode == 3
    assert "Starting again: #0" in shown.stderr
    job = the_sweep(folder.parent.parent).tasks[0]
    assert job != before
    return job


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 40 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "none", disk], check=True)
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.fixture
def filled(lab, launch, conf, small_disk, tmp_path):
    """A LONG run whose disk is full from its first checkpoint on, but for a share of a checkpoint's size."""

    def begin(share):
        arguments = (*LONG, "seed=0", f"output_root={small_disk}", f"hydra.sweep.dir={tmp_path / 'sweep'}")
        process = launch(*arguments)
        [folder] = folders(conf, small_disk, [()], *LONG)
        checkpoint = folder / "checkpoint.safetensors"
        wait(checkpoint.exists, "a checkpoint", MINUTES)
        pid = attempts_of(folder)[0]["pid"]
        os.kill(pid, signal.SIGSTOP)
        size = checkpoint.stat().st_size
        (small_disk / "ballast").write_bytes(bytes(shutil.disk_usage(small_disk).free - int(share * size)))
        os.kill(pid, signal.SIGCONT)
        return process, folder, arguments

    return begin


def test_a_disk_full_in_the_middle_of_a_checkpoint_does_not_end_training(filled, tmp_path, whole):
    process, folder, _ = filled(0.5)
    code, output = ended(process)
    assert code == 0, output
    [log] = (tmp_path / "sweep/.submitit").glob("*/*_log.err")
    assert "could not save a checkpoint after step" in log.read_text()
    assert "No space left on device" in log.read_text()
    equal_runs(folder, whole)


def test_what_a_disk_too_full_for_a_line_ends_goes_on_when_there_is_room(filled, small_disk, launch, whole):
    process, folder, arguments = filled(0)
    code, output = ended(process)
    assert code == 1, output
    assert "No space left on device" in output
    assert (folder / "checkpoint.safetensors").stat().st_size > 0
    (small_disk / "ballast").unlink()
    code, output = ended(launch(*arguments))
    assert code == 0, output
    equal_runs(folder, whole)
    assert json.loads((folder / "train.jsonl").read_text().splitlines()[-1])["step"] == STEPS - 1


def test_a_job_runs_the_code_and_configuration_of_its_submission(lab, launch, conf, tmp_path):
    checkout = tmp_path / "checkout"
    for name in ("unlearn", "conf", "sweeps"):
        shutil.copytree(ROOT / name, checkout / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "launch.py", checkout)
    held = ("+hydra.launcher.additional_parameters.hold=true", "hydra.launcher.wait=false")
    code, output = ended(launch("seed=0", *SHORT, *held, "output_root=outputs", root=checkout))
    assert code == 0, output
    assert "Submitted 1 SLURM jobs" in output
    (checkout / "unlearn/experiment.py").write_text("raise RuntimeError('edited after the submission')\n")
    model = checkout / "conf/model/toy.yaml"
    model.write_text(re.sub(r"lr: .*", "lr: 1.0", model.read_text()))
    sweep = the_sweep(checkout / "outputs")
    lab.ask("scontrol", "release", sweep.tasks[0])
    wait(lambda: queue(sweep.tasks.values()) == {}, "the end of the job", MINUTES)
    assert (sweep.folder / sweep.code / "code.json").is_file()
    record = json.loads((Path(sweep.jobs[0].folder) / "run.json").read_text())
    assert record["status"] == "done"
    assert record["config"]["train"]["lr"] == conf().train.lr
    assert record["config"]["model"]["path"].startswith(str(sweep.folder / "code"))


def test_two_jobs_on_one_folder_one_runs_and_both_launchers_wait_for_it(lab, training, launch, whole, tmp_path):
    process, folder = training()
    pid = attempts_of(folder)[0]["pid"]
    os.kill(pid, signal.SIGSTOP)
    second = launch(*LONG, "seed=0")

    def one_has_failed():
        sweeps = [Sweep.open(file.parent) for file in (tmp_path / "outputs/sweeps").glob("*/*/sweep.json")]
        return any("FAILED" in lab.states(task) for sweep in sweeps for task in sweep.tasks.values())

    wait(one_has_failed, "the end of the second job", MINUTES)
    os.kill(pid, signal.SIGCONT)
    for launcher in (process, second):
        code, output = ended(launcher)
        assert code == 0, output
    equal_runs(folder, whole)


def test_what_sbatch_refuses_is_said_in_its_words(lab, launch, tmp_path):
    code, output = ended(launch("seed=0,1", *SHORT, "hydra.launcher.partition=nowhere"))
    assert code == 1
    assert "invalid partition specified: nowhere" in output
    assert "Traceback" not in output


def test_submission_loads_nothing_heavy(lab, tmp_path):
    arguments = ["-m", "seed=range(0,20)", *SHORT, *SMALL, "hydra.launcher.wait=false", f"output_root={tmp_path}"]
    program = f"""
import runpy, sys
sys.argv = ["launch.py", *{arguments!r}]
runpy.run_path("launch.py", run_name="__main__")
print("HEAVY", [m for m in ("torch", "transformers", "datasets", "lm_eval", "wandb") if m in sys.modules])
"""
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False, capture_output=True, text=True)
    assert "HEAVY []" in ran.stdout, ran.stdout + ran.stderr
    assert "Submitted 20 SLURM jobs" in ran.stdout
