"""An evaluation on several devices: made-up ones here, processes on the CPU. The answers are the same to the bit."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict

import pytest
import torch

from tests.conftest import ROOT, assert_same_results, read_metrics, untimed
from unlearn.errors import UserError
from unlearn.evaluate.journal import Journals, Work
from unlearn.evaluate.scorer import Scorer
from unlearn.evaluate.turns import Sharing, Turns
from unlearn.experiment import run
from unlearn.runs.evaluation import evaluate_checkpoint, evaluate_run
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


def test_what_other_processes_compute_is_what_this_one_would(short, alone, monkeypatch, tmp_path):
    monkeypatch.setattr(Turns, "take", lambda _self, _number: False)  # here: the others do all of it
    monkeypatch.setattr(Scorer, "_score", lambda *_: pytest.fail("computed here"))
    course = ("eval.every=2", "eval.every_questions=4")
    folder = run(short(*ASKED, *course, "eval.devices=3", f"output_root={tmp_path / 'shared'}"))
    assert len((folder / "course.jsonl").read_text().splitlines()) == 3
    assert not (folder / "partial").exists()
    assert_equal_results(folder, alone)
    again = evaluate_run(RunFolder(folder), [*ASKED, "eval.seed=1", "eval.devices=2"])
    monkeypatch.undo()
    assert_equal_results(again, evaluate_run(RunFolder(alone), [*ASKED, "eval.seed=1"]))


def test_what_a_process_that_dies_had_taken_is_computed_here(short, alone, monkeypatch, tmp_path, capsys):
    announce = Others.announce

    def announced(self, task):
        announce(self, task)
        other = self._processes[0]
        while other.poll() is None:
            if any(file.stat().st_size for file in self.sharing.folder.glob("*.turns")):  # it has begun
                os.kill(other.pid, signal.SIGKILL)
                other.wait()
            time.sleep(0.05)

    monkeypatch.setattr(Others, "announce", announced)
    folder = run(short(*ASKED, "eval.devices=2", f"output_root={tmp_path / 'shared'}"))
    assert "Process 1 of this evaluation has ended; its part is computed here." in capsys.readouterr().err
    assert_equal_results(folder, alone)


def test_the_base_model_is_shared_too(conf, monkeypatch, tmp_path):
    places = []
    end = Others.end

    def ended(self):
        places.extend(line.split()[1] for file in self.sharing.folder.glob("*.turns") for line in file.open())
        end(self)

    monkeypatch.setattr(Others, "end", ended)
    started, take = [], Turns.take

    def patient(self, number):
        while not started and not any(f.stat().st_size for f in self._sharing.folder.glob("*.turns")):
            time.sleep(0.05)
        started.append(number)
        return take(self, number)

    monkeypatch.setattr(Turns, "take", patient)
    how = ["model=toy", *ASKED, "tracker=none"]
    folder = evaluate_checkpoint([*how, "eval.devices=2", f"output_root={tmp_path / 'shared'}"])
    assert set(places) == {"0", "1"}
    assert_equal_results(folder, evaluate_checkpoint([*how, f"output_root={tmp_path / 'alone'}"]))


def test_each_batch_is_taken_once(tmp_path):
    processes = [Turns(tmp_path / "a.turns", Sharing(tmp_path, place)) for place in range(4)]
    taken = [[] for _ in processes]

    def work(place):
        taken[place] += [number for number in range(300) if processes[place].take(number)]

    threads = [threading.Thread(target=work, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(n for of_process in taken for n in of_process) == list(range(300))
    assert not processes[0].take(0)


def test_journals_of_other_processes_are_merged_also_after_an_interruption(tmp_path):
    turns, computed = tmp_path / "turns", []
    turns.mkdir()

    def work(place):
        return Work([Journals(tmp_path, "key", sharing=Sharing(turns, place))], "name", "plan", 6)

    def compute(number, _models):
        computed.append(number)
        return [f"result {number}"]

    other = work(1).results(compute)
    for _ in range(3):
        next(other)
    other.close()  # it took three batches, and computed all of them
    assert [number for number, _ in work(0).results(compute)] == list(range(6))
    assert computed == list(range(6))
    alone = Work([Journals(tmp_path, "key")], "name", "plan", 6)
    (tmp_path / "name.1.jsonl").unlink()  # the first process has them, too
    assert dict(alone.results(compute)) == {n: [f"result {n}"] for n in range(6)}
    assert computed == list(range(6))


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
    with pytest.raises(UserError, match=r"eval\.devices=3: there are 2 GPUs, of which 2 can share an evaluation"):
        run(short("eval.devices=3"))
    with pytest.raises(UserError, match=r"of which 1 can share an evaluation with model\.device=balanced"):
        run(short("eval.devices=2", "model.device=balanced"))
    with pytest.raises(UserError, match=r"eval\.devices=0 is not allowed"):
        short("eval.devices=0")


def test_a_process_ends_when_the_one_that_started_it_does(short, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "unlearn.runs.sharing", str(tmp_path), "1"], stdin=subprocess.PIPE, text=True, cwd=ROOT
    )
    process.stdin.write(json.dumps(asdict(short(*ASKED))) + "\n" + json.dumps({"models": [], "course": False}) + "\n")
    process.stdin.close()
    assert process.wait() == 0
