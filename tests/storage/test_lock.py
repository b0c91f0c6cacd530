"""One process at a time in a folder: heartbeats, dead holders, and what a process does that was taken for dead."""

import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from unlearn.storage.lock import LOCK, Busy, FolderLock, Holder, Lost, Phase, live_holder, phase_of


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
    """A lock whose holder wrote it and is no more."""
    holder = replace(Holder.me(), **changes)
    lock = FolderLock(folder)
    lock._me = holder
    assert lock._link()
    return folder / LOCK


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


def test_whoever_was_taken_for_dead_notices(tmp_path, monkeypatch):
    monkeypatch.setattr("unlearn.storage.lock.BEAT_S", 0.05)
    with FolderLock(tmp_path) as slept:
        (tmp_path / LOCK).unlink()
        with FolderLock(tmp_path):
            time.sleep(0.3)
            with pytest.raises(Lost, match="lost the lock"):
                slept.report(Phase())
        assert not (tmp_path / LOCK).exists()


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


def test_whoever_could_not_be_heard_does_not_go_on_writing(tmp_path, monkeypatch):
    with FolderLock(tmp_path) as lock:
        monkeypatch.setattr("os.utime", lambda *_: (_ for _ in ()).throw(OSError("server away")))
        with pytest.raises(OSError, match="server away"):
            lock._beat()
        lock.check()
        lock._answered -= 61
        with pytest.raises(Lost, match="no heartbeat for 60 s"):
            lock.check()
