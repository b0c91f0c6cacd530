"""A folder as a stranger would publish it: made-up runs, a sweep of them, and what can be wrong with each file."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests.analysis.made_up import made_up_run
from tests.conftest import write_jsonl
from unlearn.config.schema import Config
from unlearn.records.attacks import AttackAbout, AttackScore, write_attack
from unlearn.records.scores import read_scores
from unlearn.sweeps.sweep import Sweep

SECRET = "hf_THE_SECRET"  # of the environment, and in a file outside of the stranger's folder
RUN, OTHER, SWEEP = "runs/a", "runs/b", "sweeps/1/2"
JSON = [f"{RUN}/{name}" for name in ("run.json", "evaluations/x/evaluation.json", "attacks/lens-1/attack.json")]
JSON += [f"{RUN}/theory.json", f"{SWEEP}/sweep.json", f"{SWEEP}/0/config.json", f"{SWEEP}/1/error.json"]
LINES = [f"{RUN}/train.jsonl", f"{RUN}/course.jsonl"]
TABLES = [f"{RUN}/{place}" for place in ("scores.parquet", "samples.parquet", "evaluations/x/scores.parquet")]
TABLES += [f"{RUN}/attacks/lens-1/scores.parquet"]
FOLDERS = [f"{RUN}/{name}" for name in ("evaluations", "attacks", "partial", "evaluations/x")] + [f"{SWEEP}/0", "cache"]
HOSTILE = (
    *(None, True, -1, 0.5, 10**30, float("nan"), float("inf"), "", [], {}, [[]], {"a": {"b": None}}, [None]),
    *("../../outside", "/OUTSIDE/x", ".", "a/b", "\x1b[2J", "\n", "x" * 300, "${oc.env:SECRET}", "${package:this}"),
)


def strangers_folder(top: Path, config: Config) -> None:
    """Finished runs, one of them with all kinds of files and this whole configuration, and a sweep."""
    for number, place in enumerate((RUN, OTHER, "runs/c", "runs/d")):
        made_up_run(top / place, seed=number % 2, nu=0.1 * (number // 2))
    run, sweep = top / RUN, Sweep(top / SWEEP)
    record = json.loads((run / "run.json").read_text())
    full = asdict(config) | {"output_root": "/OUTSIDE"}
    record |= {"config": full, "attempts": [{"began": 1.0}], "trained": {"forget_loss": 1.0}, "training_from": "b"}
    record["config"]["eval"]["include_path"] = "/OUTSIDE/tasks"
    (run / "run.json").write_text(json.dumps(record))
    again = {"config": record["identity"]["eval"], "questions": {}, "query_words": {}, "time": 1.0}
    (run / "evaluations/x").mkdir(parents=True)
    (run / "evaluations/x/evaluation.json").write_text(json.dumps(again))
    shutil.copy(run / "scores.parquet", run / "evaluations/x")
    scores = [score for score in read_scores(run) if score.against is None]
    (run / "attacks/lens-1").mkdir(parents=True)
    write_attack(run / "attacks/lens-1", AttackAbout("lens", "q"), [AttackScore("lens", 0, "0", s) for s in scores])
    course = [{"step": 0, "forget/default/acc": 1.0}, {"step": 5, "forget/default/acc": 0.5}]
    write_jsonl(run / "course.jsonl", course)
    theory = {"run": "a", "role": "retain", "query": "perturbed", "questions": 20, "layer": 7}
    (run / "theory.json").write_text(json.dumps(theory))
    replaced = {"metadata": {"unlearn": json.dumps({"replaces.w": "0"})}}
    save_file({"w": torch.zeros(2, 2)}, run / "delta.safetensors", **replaced)
    for number, place in enumerate((RUN, OTHER, "runs/none")):
        config.output_dir = str(top / place)
        sweep.add(number, ["rna.nu=0", f"seed={number}"], config, sweep.folder / str(number))
    sweep.keep_error(1, None, "an error")
    sweep.write()


def _place(tree: Any, steps: list[int]) -> tuple[Any, Any]:
    """A place in a JSON tree: what holds it, and its key there."""
    holder, key = {"": tree}, ""
    for step in steps:
        inside = holder[key]
        if not isinstance(inside, (dict, list)) or not inside:
            break
        keys = list(inside) if isinstance(inside, dict) else range(len(inside))
        holder, key = inside, keys[step % len(keys)]
    return holder, key


@st.composite
def changes(draw: st.DrawFn) -> Any:
    """A function that makes one thing of a stranger's folder wrong; `outside` is a folder beside it."""
    kind = draw(st.sampled_from(["value", "value", "value", "value", "bytes", "link", "pipe", "folder", "gone"]))
    if kind == "value":
        file, value = draw(st.sampled_from(JSON)), draw(st.sampled_from(HOSTILE))
        steps = draw(st.lists(st.integers(0, 40), min_size=1, max_size=6))
        return lambda top, outside: _set_value(top / file, steps, value, outside)
    if kind == "bytes":
        file = draw(st.sampled_from(JSON + LINES + TABLES))
        at, content = draw(st.integers(0, 2000)), draw(st.sampled_from([b"", b"\xff", b"[" * 200_000, b"null"]))
        return lambda top, outside: _set_bytes(top / file, at, content)
    if kind == "link":
        file = draw(st.sampled_from(JSON + LINES + TABLES + FOLDERS))
        return lambda top, outside: _link(top / file, outside)
    file = draw(st.sampled_from(JSON + LINES + TABLES))
    return lambda top, outside: _other(top / file, kind)


def _set_value(file: Path, steps: list[int], value: Any, outside: Path) -> None:
    tree = json.loads(file.read_text())
    holder, key = _place(tree, steps)
    holder[key] = value.replace("/OUTSIDE", str(outside)) if isinstance(value, str) else value
    file.write_text(json.dumps(tree if key != "" or holder is tree else holder[key]))


def _set_bytes(file: Path, at: int, content: bytes) -> None:
    before = file.read_bytes()
    file.write_bytes(before[:at] + content + (before[at + 1 :] if content == b"\xff" else b""))


def _link(file: Path, outside: Path) -> None:
    if file.is_dir():
        shutil.rmtree(file)
    file.unlink(missing_ok=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.symlink_to(outside / "file" if file.suffix else outside / "folder")


def _other(file: Path, kind: str) -> None:
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
