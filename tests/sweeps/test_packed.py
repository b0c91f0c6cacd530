"""A sweep in one process: each job as if it had run alone; one that fails fails alone."""

import json
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT, assert_same_results, read_jsonl, read_metrics, untimed
from unlearn.config.identity import run_folder
from unlearn.errors import UserError
from unlearn.experiment import run
from unlearn.models.loading import Source, load_config
from unlearn.sweeps.packs import fitting, packs
from unlearn.training.cost import Shape, training_memory

JOB = ("train.steps=4", "eval=toy", "eval.limit=3")


def sweep(tmp_path, *arguments):
    command = [sys.executable, "launch.py", "-m", "hydra/launcher=packed", *JOB, f"output_root={tmp_path}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow  # alone finds what leaks from one point of a pack into another, W&B included
def test_every_job_is_as_if_it_had_run_alone(conf, tmp_path):
    points = [(f"method={m}", f"rna.nu={nu}") for m in ("rmu", "adaptive_rmu", "rsv") for nu in ("0.01", "0.09")]
    done = sweep(tmp_path, "rna.nu=0.01,0.09", "method=rmu,adaptive_rmu,rsv", "tracker=wandb")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Evaluating the base model") == 1
    assert "Accuracy in %" not in done.stdout + done.stderr  # one table by setting, and a line for each run
    assert done.stderr.count(": retain ") == 6
    rows = re.findall(r"rna\.nu=([\d.]+) method=(\w+) +1 ", done.stdout)
    assert rows == [(nu, method) for nu in ("0.01", "0.09") for method in ("rmu", "adaptive_rmu", "rsv")]
    assert sum(map(int, re.findall(r"Evaluating the unlearned model, (\d) runs together", done.stderr))) == 6
    for point in points[::2] + points[-1:]:  # each method, and the other nu
        packed = run_folder(conf(*JOB, *point, f"output_root={tmp_path}"))
        alone = run(conf(*JOB, *point, "tracker=none", f"output_root={tmp_path / 'alone'}"))
        assert (packed / "delta.safetensors").read_bytes() == (alone / "delta.safetensors").read_bytes()
        lines = [[untimed(line) for line in read_jsonl(folder / "train.jsonl")] for folder in (packed, alone)]
        assert lines[0] == lines[1]
        metrics = [untimed(read_metrics(folder)) for folder in (packed, alone)]
        assert metrics[0] == metrics[1]
        assert_same_results(packed, alone)
        assert json.loads((packed / "run.json").read_text())["status"] == "done"
        assert {f.name for f in packed.iterdir()} - {f.name for f in alone.iterdir()} == {".hydra", "wandb"}
        overrides = (packed / ".hydra" / "overrides.yaml").read_text()
        assert all(override in overrides for override in point)
        assert len(list((packed / "wandb").glob("offline-run-*"))) == 1


@pytest.mark.slow  # alone has a point of a real sweep fail beside others
def test_a_job_that_fails_fails_alone_and_the_sweep_says_which_and_why(conf, tmp_path):
    done = sweep(tmp_path, "method.c=2,1e30,-1", "eval=none", "tracker=none")
    assert done.returncode == 1
    assert "2 of 3 jobs failed:" in done.stderr
    assert "#1 " in done.stderr
    assert "the loss became" in done.stderr
    assert "method.c=-1 is not allowed" in done.stderr
    assert "Traceback" not in done.stderr
    good, bad = (
        run_folder(conf(*JOB, f"method.c={c}", "eval=none", "tracker=none", f"output_root={tmp_path}"))
        for c in (2, 1e30)
    )
    assert json.loads((good / "run.json").read_text())["status"] == "done"
    record = json.loads((bad / "run.json").read_text())
    assert record["status"] == "failed"
    assert "the loss became" in record["error"]


def test_packs_hold_what_can_share_a_process_and_no_more_than_asked_for(short):
    jobs = {
        3: short("rna.nu=0.1"), 4: short("train.steps=4"), 5: short("method=adaptive_rmu"), 6: short("seed=2"),
        7: short("train.steps=4", "train.lr=1e-3"), 8: short("model.layer=4"), 9: short("method=rsv"),
    }  # fmt: skip
    assert packs(jobs, None) == [[3, 5, 6], [4, 7], [8, 9]]  # RSV's layer is 4
    assert packs(jobs, 2) == [[3, 5], [6], [4, 7], [8, 9]]
    assert packs(jobs, 1) == [[3], [5], [6], [4], [7], [8], [9]]
    for size in (0, -1):
        with pytest.raises(UserError, match=rf"hydra\.launcher\.pack_size={size} is not allowed"):
            packs(jobs, size)
    # A model that cannot be read is the affair of its own jobs.
    assert packs({0: short("model.path=/nowhere"), 1: short()}, None) == [[0], [1]]


def test_a_pack_is_no_larger_than_the_memory(short, monkeypatch):
    configs = [short(f"seed={seed}") for seed in range(20)]
    source = Source.of(configs[0].model)
    shape = Shape.of(load_config(source), configs[0].model.layer)
    topics = configs[0].data.topics.values()
    tokens = configs[0].train.batch_size * max(2 * t.max_length for t in topics)
    need = training_memory(shape, tokens, weight_bytes=4, precision="master")

    class Free:
        available = need.total(5) / 0.9 + 1000

    monkeypatch.setattr("psutil.virtual_memory", lambda: Free)
    assert fitting(configs) == 5
    Free.available = 0
    assert fitting(configs) == 1
