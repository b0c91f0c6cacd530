"""One process at a time in a folder: heartbeats, dead holders, and what a process can do that was taken for dead."""

import errno
import json
import os
import stat
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest

from unlearn.storage import lock as module
from unlearn.storage.files import discard
from unlearn.storage.hold import LOCK, Hold, Lost
from unlearn.storage.lock import HOLDER, Busy, FolderLock, Holder, Phase, live_holder, phase_of


def test_a_folder_has_one_holder_and_says_who(tmp_path):
    with FolderLock(tmp_path) as lock:
        lock.report(Phase("training", 3, 10))
        lock._beat()
        with pytest.raises(Busy, match=rf"is being worked on by process {os.getpid()} on"), FolderLock(tmp_path):
            pass
        assert live_holder(tmp_path).pid == os.getpid()
        assert phase_of(tmp_path).done == 3
    assert live_holder(tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    with FolderLock(tmp_path):
        pass


def left_behind(folder, **changes):
    """A lock whose holder wrote it and is no more; its file that is touched."""
    holder = replace(Holder.me(), **changes)
    place = folder / LOCK / holder.owner
    place.mkdir(parents=True)
    (place / HOLDER).write_text(json.dumps(asdict(holder)))
    return place / HOLDER


def test_a_process_of_this_machine_that_is_gone_is_dead_at_once(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", "pass"])
    gone.wait()
    left_behind(tmp_path, pid=gone.pid)
    with FolderLock(tmp_path):
        pass
    left_behind(tmp_path, born=1.0)  # the process id has been used again
    with FolderLock(tmp_path):
        pass


def test_a_process_elsewhere_is_dead_after_a_minute_of_silence(tmp_path):
    file = left_behind(tmp_path, host="node17")
    with pytest.raises(Busy, match="on node17"), FolderLock(tmp_path):
        pass
    os.utime(file, (time.time() - 61, time.time() - 61))
    assert live_holder(tmp_path) is None
    with FolderLock(tmp_path):
        pass


def test_a_job_that_slurm_has_started_again_is_dead_where_it_was(tmp_path, monkeypatch):
    left_behind(tmp_path, host="node17", slurm_job="12_3", slurm_restarts=0)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with FolderLock(tmp_path) as lock:
        assert lock._me.slurm_job == "12_3"


@pytest.mark.parametrize("left", ["an empty lock", "a prepared place", "a removed place"])
def test_whatever_a_killed_process_left_of_its_lock_is_no_hindrance(tmp_path, left):
    if left == "an empty lock":
        (tmp_path / LOCK).mkdir()
    else:
        left_behind(tmp_path)
        (tmp_path / LOCK).rename(tmp_path / f"{LOCK}-abc")
    with FolderLock(tmp_path) as lock:
        assert list(tmp_path.iterdir()) == [lock.place.parent]
    assert list(tmp_path.iterdir()) == []


def test_of_many_that_come_at_once_one_gets_in(tmp_path):
    left_behind(tmp_path, pid=2**22 + 1)
    program = f"""
import sys, time
from pathlib import Path
from unlearn.storage.lock import Busy, FolderLock
sys.stdin.readline()
try:
    with FolderLock(Path({str(tmp_path)!r})):
        print("in", flush=True)
        time.sleep(1)
except Busy:
    print("busy", flush=True)
"""
    many = [
        subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(8)
    ]
    time.sleep(3)
    for process in many:
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate()[0].strip() for process in many]
    assert sorted(said) == ["busy"] * 7 + ["in"]
    assert list(tmp_path.iterdir()) == []


def test_a_holder_that_nobody_heard_goes_on_if_nobody_took_the_folder_over(tmp_path, monkeypatch):
    with FolderLock(tmp_path) as lock:
        with monkeypatch.context() as away:
            away.setattr("os.utime", lambda *_: (_ for _ in ()).throw(OSError("server away")))
            with pytest.raises(OSError, match="server away"):
                lock._beat()
        os.utime(lock.place / HOLDER, (0, 0))
        lock.write(tmp_path / "a.txt", "still mine")
        lock._beat()
        assert live_holder(tmp_path) is not None


# --- What a holder can do after another process has taken the folder over: nothing


def fill(hold, folder):
    with hold.filling(folder, last="b.txt") as files:
        for name in ("a.txt", "b.txt"):
            (files / name).write_text("late")


WRITES = {
    "a file": lambda hold, folder: hold.write(folder / "a.txt", "late"),
    "a file in a new folder": lambda hold, folder: hold.write_json(folder / "new/a.json", "late"),
    "a folder": lambda hold, folder: fill(hold, folder / "results"),
    "a folder that exists": fill,
    "removing a file": lambda hold, folder: hold.remove(folder / "a.txt"),
    "removing a folder": lambda hold, folder: hold.remove(folder / "below"),
}


@pytest.fixture
def taken(tmp_path, monkeypatch):
    """A folder with files, the lock of a process that was away, and that of the one that took the folder over."""
    (tmp_path / "below").mkdir()
    for name in ("a.txt", "b.txt", "below/c.txt"):
        (tmp_path / name).write_text("new")
    first = FolderLock(tmp_path)
    assert first._enter()

    def taken_over():
        os.utime(first.place / HOLDER, (0, 0))
        second = FolderLock(tmp_path).__enter__()
        second_lock.append(second)

    second_lock: list[FolderLock] = []
    yield first, taken_over
    for second in second_lock:
        second.__exit__(None, None, None)


def content(folder):
    return {f.relative_to(folder): f.read_text() for f in folder.rglob("*") if f.is_file() and f.name != HOLDER}


@pytest.mark.parametrize("write", WRITES)
def test_a_process_that_lost_the_folder_changes_nothing_there(taken, tmp_path, write):
    first, taken_over = taken
    taken_over()
    before = content(tmp_path)
    with pytest.raises(Lost, match="has lost the lock, as another one took the folder over"):
        WRITES[write](first, tmp_path)
    with pytest.raises(Lost):
        first.report(Phase())
    with pytest.raises(FileNotFoundError):
        first._beat()
    assert content(tmp_path) == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("write", WRITES)
def test_neither_if_it_was_stopped_after_it_had_looked_at_the_lock(taken, tmp_path, write, monkeypatch):
    """The other process comes between the last look and the rename."""
    first, taken_over = taken
    before = content(tmp_path)
    real = os.rename, os.replace
    stopped = []

    def stop(number):
        def renamed(source, target, **kwargs):
            if str(first.place) in f"{source} {target}" and not stopped:
                stopped.append(True)
                taken_over()
            return real[number](source, target, **kwargs)

        return renamed

    monkeypatch.setattr("os.rename", stop(0))
    monkeypatch.setattr("os.replace", stop(1))
    with pytest.raises(Lost):
        WRITES[write](first, tmp_path)
    assert stopped
    assert content(tmp_path) == before


def test_a_library_that_writes_cannot_bring_the_lost_place_back(taken, tmp_path):
    import torch
    from safetensors.torch import save_file

    from unlearn.models.delta import save_delta
    from unlearn.records.answers import Answers

    first, taken_over = taken
    scratch = first.place / "scratch"

    def late():
        with first.replacing(tmp_path / "a.txt") as scratch:
            taken_over()
            save_file({"w": torch.zeros(2)}, scratch)

    with pytest.raises(Lost):
        late()
    with pytest.raises(FileNotFoundError):
        save_delta(scratch, {"w": torch.zeros(2)}, {"w": torch.zeros(2)}, {}, {})
    with pytest.raises(FileNotFoundError):
        Answers([], []).write(scratch)
    assert not first.place.exists()
    assert content(tmp_path)[(tmp_path / "a.txt").relative_to(tmp_path)] == "new"


# --- How it writes while it has the folder


def test_a_folder_appears_with_all_its_files_and_one_that_exists_keeps_its_others(tmp_path):
    home = tmp_path / "evaluations/toy"
    with FolderLock(tmp_path) as lock:
        with lock.filling(home, last="b.txt") as files:
            for name in ("b.txt", "a.txt"):
                (files / name).write_text("first")
            assert not home.exists()
        (home / "notes.txt").write_text("the user's own")
        with lock.filling(home, last="b.txt") as files:
            for name in ("b.txt", "a.txt"):
                (files / name).write_text("second")
    assert {f.name: f.read_text() for f in home.iterdir()} == {
        "a.txt": "second", "b.txt": "second", "notes.txt": "the user's own"
    }  # fmt: skip


def test_what_is_removed_is_a_link_and_not_what_it_leads_to(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/a.txt").write_text("the user's own")
    (tmp_path / "run/partial").symlink_to(tmp_path / "elsewhere")
    with FolderLock(tmp_path / "run") as lock:
        lock.remove(tmp_path / "run/partial")
        lock.remove(tmp_path / "run/nothing")
    assert list((tmp_path / "run").iterdir()) == []
    assert (tmp_path / "elsewhere/a.txt").exists()


@pytest.mark.parametrize("mask", [0o022, 0o007])
def test_files_have_the_permissions_of_the_umask_whichever_library_writes_them(tmp_path, mask):
    import torch
    from safetensors.torch import save_file

    before = os.umask(mask)
    try:
        with FolderLock(tmp_path) as lock, lock.replacing(tmp_path / "checkpoint.safetensors") as scratch:
            save_file({"w": torch.zeros(2)}, scratch)  # creates a file of mode 0600 and renames it
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "checkpoint.safetensors").stat().st_mode) == 0o666 & ~mask


def test_a_disk_without_hard_links_and_one_that_refuses_to_rename_onto_an_empty_folder_will_do(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise OSError(errno.EPERM, "Operation not permitted")

    real = os.rename

    def renamed(source, target, **kwargs):
        if os.path.isdir(target):
            raise OSError(errno.EPERM, "Operation not permitted")
        real(source, target, **kwargs)

    monkeypatch.setattr("os.link", refused)
    monkeypatch.setattr("os.rename", renamed)
    (tmp_path / LOCK).mkdir()  # by a process that was killed
    for _ in range(2):
        with FolderLock(tmp_path) as lock:
            lock.write(tmp_path / "a.txt", "written")
            with pytest.raises(Busy), FolderLock(tmp_path):
                pass
    left_behind(tmp_path, born=1.0)
    with FolderLock(tmp_path):
        pass
    assert [f.name for f in tmp_path.iterdir()] == ["a.txt"]


def test_helpers_of_a_process_write_by_its_hold(tmp_path):
    with FolderLock(tmp_path) as lock:
        helper = Hold(lock.place)
        helper.write(tmp_path / "a.txt", "helped")
        discard(lock.place)
        with pytest.raises(Lost):
            helper.write(tmp_path / "a.txt", "late")
    assert (tmp_path / "a.txt").read_text() == "helped"
    assert module.STALE_S == 60
