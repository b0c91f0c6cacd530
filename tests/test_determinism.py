"""Same seed, same result, bit for bit: in one process, in two, in company, and nearly so with other threads."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT
from unlearn.config.identity import run_folder
from unlearn.experiment import run, run_together

JOB = ("train.steps=6", "method=adaptive_rmu", "rna.nu=0.08")


def delta(folder):
    return load_file(folder / "delta.safetensors")


@pytest.fixture(scope="module")
def once(conf, tmp_path_factory):
    return run(conf(*JOB, "eval=none", "tracker=none", f"output_dir={tmp_path_factory.mktemp('runs') / 'once'}"))


def test_twice_in_one_process(once, short, tmp_path):
    again = run(short(*JOB, f"output_dir={tmp_path / 'again'}"))
    assert (again / "delta.safetensors").read_bytes() == (once / "delta.safetensors").read_bytes()
    for mine, other in zip(*[(f / "train.jsonl").read_text().splitlines() for f in (once, again)], strict=True):
        assert mine.split('"tokens_per_second"')[0] == other.split('"tokens_per_second"')[0]


NOT_TRAINING = ("lm_eval", "datasets", "wandb", "sklearn", "peft", "altair")
LAUNCH = f"""
import sys
from unlearn.cli.launch import launch
launch()
print("imported:", [name for name in {NOT_TRAINING!r} if name in sys.modules])
"""


def test_in_another_process_which_imports_nothing_of_evaluation_tracking_and_reports(once, tmp_path):
    threads = str(torch.get_num_threads())
    command = [sys.executable, "-c", LAUNCH, *JOB, "eval=none", "tracker=none", f"output_dir={tmp_path / 'other'}"]
    env = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, env=env)
    assert (tmp_path / "other" / "delta.safetensors").read_bytes() == (once / "delta.safetensors").read_bytes()
    assert done.stdout.endswith("imported: []\n")


def test_in_company_and_in_another_order(once, short, tmp_path):
    order = (2, 0, 1)
    points = [JOB, (*JOB, "seed=1"), ("train.steps=6", "method=rsv", "model.layer=3", "rna=none")]
    configs = [short(*points[i], f"output_root={tmp_path / 'company'}") for i in order]
    run_together(configs)
    together, alone = delta(run_folder(configs[order.index(0)])), delta(once)
    assert together.keys() == alone.keys()
    assert all(torch.equal(together[name], alone[name]) for name in alone)
    assert not torch.equal(delta(run_folder(configs[order.index(1)]))["control.bio"], alone["control.bio"])


def test_one_thread_and_two(once, short, tmp_path):
    assert torch.get_num_threads() == 1
    try:
        torch.set_num_threads(2)
        two = delta(run(short(*JOB, f"output_dir={tmp_path / 'two'}")))
    finally:
        torch.set_num_threads(1)
    for name, w in delta(once).items():
        torch.testing.assert_close(w, two[name], rtol=0, atol=1e-6)


def test_idle_threads_sleep_unless_the_user_says_otherwise():
    code = "import os, unlearn; print(os.environ['OMP_WAIT_POLICY'])"
    for given, expected in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        env = {"PATH": "/usr/bin:/bin", **given}
        ran = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True
        )
        assert ran.stdout.strip() == expected
