"""Offline W&B runs of several attempts: what one `wandb sync` sends, and what a signal leaves."""

import os
import signal
import subprocess
import sys

from tests.conftest import ROOT
from tests.tracking.server import wandb_server
from tests.tracking.wandb_log import records, rows

FILES = "wandb/offline-run-*/run-*.wandb"
ATTEMPT = """
import os, signal, sys, time
from pathlib import Path
from types import SimpleNamespace
import psutil
from unlearn.cli.launch import one_sentence
from unlearn.tracking.tracker import Tracker
from unlearn.tracking.wandb_run import start_wandb

folder, first, last, end = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
with one_sentence(), Tracker(folder, start_wandb(
    folder, run_id="abc", name="n", project="unlearn", entity=None, mode="offline", group=None, job_type="rmu",
    tags=[], timeout_s=1, config={},
)) as tracker:
    tracker.rewind(first)
    for step in range(first, last):
        tracker.log_step(SimpleNamespace(line=lambda: {"step": step, "loss": 1 / (step + 1), "text": "x" * 500}))
    if end == "SIGKILL":
        time.sleep(1)
        for process in psutil.Process().children(recursive=True):
            process.kill()
    if end != "done":
        os.kill(os.getpid(), getattr(signal, end))
        time.sleep(60)
"""


def attempt(folder, first, last, end):
    """A process that logs some steps offline and ends itself by a signal, or by itself ("done")."""
    env = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    command = [sys.executable, "-c", ATTEMPT, str(folder), str(first), str(last), end]
    return subprocess.run(command, env=env | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)


def test_one_command_sends_every_step_of_a_run_that_was_killed(tmp_path):
    """Steps 0 to 120, then a kill; the second attempt goes on from its checkpoint at step 100."""
    killed = attempt(tmp_path, 0, 120, "SIGKILL")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    [broken] = tmp_path.glob(FILES)
    broken.write_bytes(broken.read_bytes()[:-9])  # within a record, where `wandb sync` stops
    assert attempt(tmp_path, 100, 200, "done").returncode == 0
    with wandb_server() as server:
        sync = [sys.executable, "-m", "wandb", "sync", "--include-synced", str(tmp_path / "wandb")]
        env = os.environ | {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "f00d" * 10}
        done = subprocess.run(sync, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
        assert "Finished syncing" in done.stderr
        assert [row["train/step"] for row in server.rows] == list(range(200)), done.stderr


def test_sigterm_closes_wandb_as_a_run_that_will_go_on(tmp_path):
    ended = attempt(tmp_path, 0, 3, "SIGTERM")
    assert (ended.returncode, ended.stderr) == (130, "Interrupted. Run the same command again to resume.\n")
    [file] = tmp_path.glob(FILES)
    sent = list(records(file))
    assert [row["train/step"] for row in rows(sent)] == [0, 1, 2]
    assert [e.exit.exit_code for e in sent if e.WhichOneof("record_type") == "exit"] == [1]
    assert [e for e in sent if e.WhichOneof("record_type") == "preempting"] != []
