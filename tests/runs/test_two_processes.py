"""Two processes and one folder: a process that was stopped while another one took its folder over, and killed ones.

The processes are real. One is stopped by SIGSTOP, as a suspended machine or a hanging disk would stop it.
"""

import json
import multiprocessing
import os
import signal
import time
from itertools import count
from types import SimpleNamespace

import pytest

from tests.analysis.made_up import made_up_run
from tests.conftest import write_jsonl
from tests.runs import victim
from unlearn.analysis.collect import read_run
from unlearn.cli.main import main
from unlearn.config.identity import run_folder
from unlearn.evaluation.journal import Journals
from unlearn.experiment import run
from unlearn.records.answers import Answers
from unlearn.records.samples import Sample
from unlearn.records.scores import Score, read_scores
from unlearn.runs.evaluations import RECORD, Evaluation, keep_evaluation
from unlearn.runs.folder import RunFolder
from unlearn.storage.hold import Lost
from unlearn.storage.lock import Busy, FolderLock
from unlearn.tracking.tracker import Tracker

forked = multiprocessing.get_context("fork")


def started(function, *arguments, context=forked):
    process = context.Process(target=function, args=arguments)
    process.start()
    return process


def wait_until_stopped(process):
    with open(f"/proc/{process.pid}/stat") as stat:
        while stat.read().rpartition(")")[2].split()[0] != "T":
            assert process.is_alive()
            time.sleep(0.01)
            stat.seek(0)


@pytest.fixture
def impatient(monkeypatch):
    """This process takes a folder over after a second of silence."""
    monkeypatch.setattr("unlearn.storage.lock.STALE_S", 1.0)
    monkeypatch.setattr("unlearn.storage.lock.BEAT_S", 0.05)


def taken_over(work):
    """Do something as soon as the other process counts as dead."""
    while True:
        try:
            return work()
        except Busy:
            time.sleep(0.05)


def content(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def answers(value):
    sample = Sample("unlearned", "retain", "mmlu", "default", 0, "question", correct=bool(value))
    return Answers([Score("unlearned", "retain", "mmlu", None, "default", "acc", value)], [sample])


def begun(folder, corpus):
    folder.start({}, {"seed": 0}, {"rows": corpus})
    folder.record["trained"] = {"steps": 3}
    folder.lock.write(folder.file("delta.safetensors"), corpus)


# --- A process that was stopped


def stopped_between_two_files(path, end):
    folder = RunFolder(path)
    with folder.locked():
        begun(folder, "old")
        os.kill(os.getpid(), signal.SIGSTOP)
        try:
            folder.finish(answers(0.0))
        except Lost as lost:
            end.send(str(lost))


def test_who_is_heard_keeps_its_folder_and_who_was_stopped_writes_nothing_more(tmp_path, impatient):
    told, end = forked.Pipe()
    first = started(stopped_between_two_files, tmp_path, end)
    end.close()
    wait_until_stopped(first)
    folder = RunFolder(tmp_path)

    def work():
        with folder.locked():
            begun(folder, "new")
            time.sleep(1.5)  # longer than the others wait, but heartbeats are heard
            with pytest.raises(Busy), FolderLock(tmp_path):
                pass
            folder.finish(answers(1.0))

    taken_over(work)
    before = content(tmp_path)
    os.kill(first.pid, signal.SIGCONT)
    first.join()
    assert told.recv() == (
        f"{tmp_path}: this process has lost the lock, as another one took the folder over while it gave no sign of "
        "life. It stops, and writes nothing more there."
    )
    assert content(tmp_path) == before
    assert before["delta.safetensors"] == b"new"
    assert RunFolder(tmp_path).done


def lost(lock):
    """Another process takes the folder over; its lock."""
    os.utime(lock.place / "holder.json", (0, 0))
    return FolderLock(lock.folder)


def test_lines_that_a_stopped_process_still_writes_are_not_in_the_others_files(tmp_path):
    line = SimpleNamespace(line=lambda: {"step": 7, "loss": 666.0})
    with FolderLock(tmp_path) as first:
        old = Journals(tmp_path / "partial", "old weights", hold=first).open("scoring", "plan")
        tracker = Tracker(tmp_path, replace=first.replacing)
        old.add(0, "old answer")
        tracker.log_step(line)
        with lost(first) as second:
            new = Journals(tmp_path / "partial", "new weights", hold=second).open("scoring", "plan")
            logged = Tracker(tmp_path, replace=second.replacing)
            logged.rewind(0)
            old.add(1, "old answer")
            tracker.log_step(line)
            new.add(2, "new answer")
            again = Journals(tmp_path / "partial", "new weights", hold=second).open("scoring", "plan")
            assert again.done == {2: "new answer"}
            assert (tmp_path / "train.jsonl").read_text() == ""
            with pytest.raises(Lost):
                Journals(tmp_path / "partial", "old weights", hold=first).open("maxlogit", "plan")
            with pytest.raises(Lost):
                tracker.rewind(0)
            for stream in (old, new, again):
                stream.__exit__(None, None, None)
            for log in (tracker, logged):
                log.close(failed=False)


def ended_alone(process):
    """It said that it had lost its folder, and nothing else."""
    os.kill(process.pid, signal.SIGCONT)
    process.join()
    assert process.exitcode == victim.LOST


forkserver = multiprocessing.get_context("forkserver")
forkserver.set_forkserver_preload(["tests.runs.victim"])


@pytest.fixture
def corpus(tmp_path):
    return write_jsonl(tmp_path / "corpus.jsonl", [{"text": "soil blossom river"}] * 40)


@pytest.mark.slow  # alone stops whole commands at their work, and lets others finish them with an edited corpus
@pytest.mark.parametrize("moment", ["training", "checkpoint", "evaluating", "results"])
def test_a_run_that_was_stopped_leaves_the_folder_to_the_one_that_finished_it(short, corpus, impatient, moment):
    config = short(
        "data=jsonl", "data.held_out=0", f"+data.topics.a={{forget: {corpus}, retain: {corpus}, max_length: 16}}",
        "train.steps=5", "train.checkpoint_every=2", "eval=toy", "eval.limit=2", "eval.tokens_per_batch=300",
    )  # fmt: skip
    first = started(victim.stopped, ["run", config], moment, 2, context=forkserver)
    wait_until_stopped(first)
    write_jsonl(corpus, [{"text": "ruler harbour stone"}] * 40)
    folder = taken_over(lambda: run(config))
    before = content(folder)
    ended_alone(first)
    assert content(folder) == before
    assert RunFolder(run_folder(config)).done


@pytest.mark.slow  # alone stops whole commands at their work
@pytest.mark.parametrize(
    ("command", "moment", "n"),
    [
        (["evaluate", "RUN", "eval.queries=[default]", "eval.limit=2"], "evaluating", 1),
        (["evaluate", "RUN", "eval.queries=[default]", "eval.limit=2"], "results", 2),
        (["attack", "RUN", "attack=pruning", "attack.levels=[0.3,0.6]", "eval.limit=2"], "results", 4),
    ],
)
def test_neither_does_an_evaluation_or_an_attack_write_over_anothers(short, impatient, command, moment, n):
    folder = run(short("eval=toy", "eval.limit=4"))
    told = [str(folder) if argument == "RUN" else argument for argument in command]
    first = started(victim.stopped, told, moment, n, context=forkserver)
    wait_until_stopped(first)
    taken_over(lambda: run(short("eval=toy", "eval.limit=4", "train.force=true")))
    main(told)
    before = content(folder)
    ended_alone(first)
    assert content(folder) == before


# --- A process that was killed while it published an evaluation


def publish(path, name, value):
    folder = RunFolder(path)
    with folder.locked() as lock:
        made = Evaluation(path / "evaluations" / name, folder.record["config"]["eval"], {}, {}, time=value)
        keep_evaluation(lock, made, answers(value), {})


def killed_at(n, path, name, value):
    """Publish, and be killed before the n-th call of the system that changes the folder."""
    now = victim.Countdown(n)

    def dying(call):
        def called(*args, **kwargs):
            if now():
                victim.die()
            return call(*args, **kwargs)

        return called

    for name_of_call in ("rename", "replace", "unlink", "rmdir", "mkdir"):
        setattr(os, name_of_call, dying(getattr(os, name_of_call)))
    publish(path, name, value)


@pytest.mark.parametrize("before", [None, 0.25], ids=["new", "made before"])
def test_an_evaluation_is_published_whole_or_not_wherever_it_is_killed(tmp_path, before):
    killed, complete = 0, set()
    for n in count(1):
        folder = made_up_run(tmp_path / str(n), scores=[])
        home = folder / "evaluations/toy"
        if before is not None:
            publish(folder, "toy", before)
            (home / "notes.txt").write_text("the user's own")
        process = started(killed_at, n, folder, "toy", 0.75)
        process.join()
        shown = [evaluation for evaluation in read_run(folder).evaluations if evaluation.folder == home]
        values = {score.value for evaluation in shown for score in read_scores(evaluation.folder)}
        assert values <= {0.75, before}
        if shown:
            figures = json.loads((home / "metrics.json").read_text())["unlearned"]["mmlu"]["default"]["acc"]
            assert ({figures}, shown[0].time) == (values, figures)
        elif before is None:
            assert not home.exists()  # no figures without a record
        complete |= values
        publish(folder, "toy", 0.75)
        assert [evaluation.time for evaluation in read_run(folder).evaluations] == [0, 0.75]
        own = {"notes.txt"} if before is not None else set()
        assert {file.name for file in home.iterdir()} == {
            "metrics.json", "samples.parquet", "scores.parquet", RECORD
        } | own  # fmt: skip
        assert not list(folder.glob(".unlearn*"))
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        killed += 1
    assert killed > 15
    assert complete == {value for value in (0.75, before) if value is not None}
