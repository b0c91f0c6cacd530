"""Runs that are killed (SIGKILL) at random moments and started again end as if nothing had happened.

The moments are those of the work's progress, not of the clock. `--kills N` says how many there are (`make test-crash`:
50); the seed is fixed.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import signal

import pytest

from tests.conftest import read_jsonl, untimed
from tests.runs import victim
from unlearn.records.scores import flat
from unlearn.storage.files import TEMPORARY
from unlearn.storage.hold import LOCK

STEPS, EVERY = 14, 4
JOB = (
    f"train.steps={STEPS}", f"train.checkpoint_every={EVERY}", "eval=toy", "~eval.tasks.near", "eval.limit=6",
    "eval.tokens_per_batch=512", "eval.maxlogit.tokens=3", "eval.maxlogit.roles=[retain]", "tracker=none",
)  # fmt: skip
PACKS = (
    (("method=rmu",),),
    (("method=adaptive_rmu", "preset=paper", "model.dtype=float32"),),
    (("method=rsv", "model.layer=3"), ("method=rmu", "seed=1")),
)
# How long a moment is from the start of an attempt, at most, and the least number of kills at each.
REACH = {"training": STEPS, "checkpoint": 2, "after a checkpoint": 2, "evaluating": 20, "results": 25}


def attempt(*arguments) -> int:
    """Run in a process of its own; its exit code. The server has imported everything, so that this takes seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.runs.victim"])
    process = context.Process(target=victim.run, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def everything(folder):
    """All that a finished run left, times and attempts aside."""
    found = {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    found["metrics.json"] = untimed(flat(json.loads(found["metrics.json"])))
    found["train.jsonl"] = [untimed(line) for line in read_jsonl(folder / "train.jsonl")]
    record = json.loads(found["run.json"])
    found["run.json"] = {key: value for key, value in record.items() if key not in ("attempts", "config", "trained")}
    return found


@pytest.mark.slow  # alone kills runs at random moments, also while files are written
def test_killed_runs_end_as_uninterrupted_ones(conf, tmp_path, pytestconfig):
    wanted = pytestconfig.getoption("--kills")
    least = wanted // 5
    rng = random.Random(2026)
    kills = dict.fromkeys(victim.MOMENTS, 0)
    references = {}
    rounds = most_lost = 0
    while sum(kills.values()) < wanted or min(kills["training"], kills["checkpoint"], kills["evaluating"]) < least:
        pack = PACKS[rounds % len(PACKS)]
        root = tmp_path / f"round{rounds}"
        if pack not in references:
            whole = [conf(*JOB, *point, f"output_root={tmp_path / 'whole'}") for point in pack]
            assert attempt(whole, None) == 0
            references[pack] = [everything(victim.experiment.run_folder(config)) for config in whole]
        configs = [conf(*JOB, *point, f"output_root={root}") for point in pack]
        folders = [victim.experiment.run_folder(config) for config in configs]
        rounds += 1
        logged = dict.fromkeys(folders, 0)
        # Early moments first: once training is done, only the later ones can be hit.
        plan = [*rng.choices(["training", "checkpoint", "after a checkpoint"], k=3)]
        plan += rng.choices(["evaluating", "evaluating", "results"], k=3)
        for moment in plan:
            code = attempt(configs, moment, rng.randint(1, REACH[moment]), rng.random() < 0.5)
            assert code in (0, -signal.SIGKILL)
            kills[moment] += code == -signal.SIGKILL
            for file in root.rglob("*.json"):
                json.loads(file.read_text())
            for folder in folders:
                lines = read_jsonl(folder / "train.jsonl") if (folder / "train.jsonl").is_file() else []
                most_lost = max(most_lost, logged[folder] - len(lines))
                logged[folder] = len(lines)
            if code == 0:
                break
        assert attempt(configs, None) == 0
        for folder, reference in zip(folders, references[pack], strict=True):
            assert everything(folder) == reference
        assert [
            str(f) for f in root.rglob("*") if f.suffix == TEMPORARY or f.name.startswith(LOCK) or f.name == "partial"
        ] == []
    assert most_lost <= EVERY
    print(f"\n{sum(kills.values())} kills in {rounds} rounds: {kills}")
