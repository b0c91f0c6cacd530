"""An evaluation on several devices: made-up ones here, processes on the CPU. The answers are the same to the bit."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT, assert_same_results, read_metrics, untimed
from unlearn.errors import UserError
from unlearn.evaluation.journal import Journals, Sharing, journaled
from unlearn.experiment import run
from unlearn.runs.evaluation import evaluate_run
from unlearn.runs.folder import RunFolder
from unlearn.runs.sharing import Others, other_devices

ASKED = (
    "eval=toy",
    "eval.limit=6",
    "eval.tokens_per_batch=600",
    "eval.maxlogit.tokens=2",
    "eval.maxlogit.queries=[default]",
    "eval.maxlogit.roles=[retain]",
)


def assert_equal_results(folder, other):
    found = [untimed(read_metrics(f)) for f in (folder, other)]
    assert found[0] == found[1]
    assert_same_results(folder, other)


@pytest.fixture
def alone(short, tmp_path):
    return run(short(*ASKED, f"output_root={tmp_path / 'alone'}"))


@pytest.fixture
def patient(monkeypatch):
    """This process waits, at each announcement, until another one has computed a batch; returns the journals' names."""
    journals = set()
    announce = Others.announce

    def announced(self, task):
        announce(self, task)
        folders = [Path(folder) for _, folder in task.models] or [Path(self._config.output_root) / "cache"]
        journal = None
        while journal is None and any(process.poll() is None for process in self._processes):
            files = [file for folder in folders for file in folder.rglob("*.[1-9].jsonl")]
            journal = next((file for file in files if len(file.read_bytes().splitlines()) > 1), None)
            time.sleep(0.05)
        if journal is not None:
            journals.add(journal.name)

    monkeypatch.setattr(Others, "announce", announced)
    return journals


@pytest.mark.slow  # alone shares a course and a later evaluation
def test_what_other_processes_compute_is_what_this_one_would(short, alone, patient, tmp_path):
    course = ("eval.every=2", "eval.every_questions=4")
    folder = run(short(*ASKED, *course, "eval.devices=3", f"output_root={tmp_path / 'shared'}"))
    assert {name.rpartition("-")[0] for name in patient} >= {"unlearned", "base"}
    assert len((folder / "course.jsonl").read_text().splitlines()) == 3
    assert not (folder / "partial").exists()
    assert_equal_results(folder, alone)
    again = evaluate_run(RunFolder(folder), [*ASKED, "eval.seed=1", "eval.devices=2"])
    assert_equal_results(again, evaluate_run(RunFolder(alone), [*ASKED, "eval.seed=1"]))


def test_what_a_process_that_dies_had_begun_is_computed_here(short, alone, patient, monkeypatch, tmp_path, capsys):
    wait = Others.announce

    def announced(self, task):
        wait(self, task)
        if self._processes[0].poll() is None:
            os.kill(self._processes[0].pid, signal.SIGKILL)
            self._processes[0].wait()

    monkeypatch.setattr(Others, "announce", announced)
    folder = run(short(*ASKED, "eval.devices=2", f"output_root={tmp_path / 'shared'}"))
    assert "Process 1 of this evaluation ended early. This process computed its part." in capsys.readouterr().err
    assert_equal_results(folder, alone)


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_each_process_begins_with_another_part_and_goes_on_with_all_others(count):
    orders = [Sharing(place, count).order(100) for place in range(count)]
    assert all(sorted(order) == list(range(100)) for order in orders)
    firsts = [order[: 100 // count] for order in orders]
    assert len({number for first in firsts for number in first}) == count * (100 // count)
    assert Sharing().order(5) == [0, 1, 2, 3, 4]


def test_journals_of_other_processes_are_read_also_after_an_interruption(tmp_path):
    computed = []

    def work(place):
        return journaled([Journals(tmp_path, "key", sharing=Sharing(place, 2))], "name", "plan", 6, compute)

    def compute(number, _models):
        computed.append(number)
        return [f"result {number}"]

    this, other = work(0), work(1)
    assert [next(other)[0] for _ in range(2)] == [1, 3]
    assert next(this)[0] == 0
    assert next(other)[0] == 5
    other.close()  # it has ended
    results = dict(this)
    assert computed == [1, 3, 0, 5, 2, 4]  # none twice
    assert results == {n: [f"result {n}"] for n in range(1, 6)}
    alone = journaled([Journals(tmp_path, "key")], "name", "plan", 6, compute)
    assert dict(alone) == {n: [f"result {n}"] for n in range(6)}
    assert len(computed) == 6


@pytest.mark.parametrize(
    ("gpus", "visible", "override", "others"),
    [
        (0, None, "eval.devices=null", []),
        (0, None, "eval.devices=3", [None, None]),
        (4, None, "eval.devices=null", ["1", "2", "3"]),
        (4, None, "eval.devices=2", ["1"]),
        (4, None, "eval.devices=1", []),
        (2, "5,7", "eval.devices=null", ["7"]),
        (1, None, "eval.devices=null", []),
        (4, None, "model.device=cpu", []),
        (4, None, "model.device=balanced", []),
    ],
)
def test_devices(gpus, visible, override, others, short, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert other_devices(short(override)) == others


def test_more_devices_than_there_are_is_told_at_the_start(short, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(UserError, match=r"eval\.devices=3 is not allowed: of 2 GPUs, 2 can share an evaluation"):
        run(short("eval.devices=3"))
    with pytest.raises(UserError, match=r"of 2 GPUs, 1 can share an evaluation with model\.device=balanced"):
        run(short("eval.devices=2", "model.device=balanced"))
    with pytest.raises(UserError, match=r"eval\.devices=0 is not allowed"):
        short("eval.devices=0")


def test_a_process_ends_when_the_one_that_started_it_does(short):
    process = subprocess.Popen(
        [sys.executable, "-m", "unlearn.runs.sharing", "1", "2"], stdin=subprocess.PIPE, text=True, cwd=ROOT
    )
    process.stdin.write(json.dumps(asdict(short(*ASKED))) + "\n" + json.dumps({"models": [], "course": False}) + "\n")
    process.stdin.close()
    assert process.wait() == 0
