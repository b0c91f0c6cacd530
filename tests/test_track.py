"""Weights & Biases, offline: real run folders, always finished, no bleeding, no question asked."""

import json
import struct

import pytest
import wandb
from wandb.proto import wandb_internal_pb2

from unlearn.errors import UserError
from unlearn.experiment import run, run_together
from unlearn.identity import run_folder
from unlearn.track import start_wandb

QUIET = {
    "project": "unlearn", "entity": None, "mode": "auto", "group": None, "tags": [], "timeout_s": 1, "config": {},
}  # fmt: skip


def records(folder):
    """Everything in the one offline run of a folder: what `wandb sync` sends.

    The file is LevelDB's log format behind a header of 7 bytes: blocks of 32 KiB; fragments with checksum (4 bytes),
    length (2) and kind (1: whole, 2: first, 3: middle, 4: last).
    """
    [found] = all_records(folder)
    return found


def all_records(folder):
    """Those of every offline run of a folder, in order."""
    return [_records_of(file) for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))]


def _records_of(file):
    raw, at, parts, found = file.read_bytes(), 7, b"", []
    while at + 7 <= len(raw):
        if 32768 - at % 32768 < 7:  # no room for a fragment: the rest of the block is filled up
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", raw[at + 4 : at + 7])
        parts += raw[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            found.append(record)
            parts = b""
    return found


def of_kind(found, kind):
    return [getattr(record, kind) for record in found if record.WhichOneof("record_type") == kind]


def test_curves_metrics_config_and_end_are_in_the_offline_run(short):
    config = short("tracker=wandb", "tracker.tags=[a]", "eval=toy", "eval.limit=2")
    folder = run(config)
    found = records(folder)
    history = [
        {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in row.item}
        for row in of_kind(found, "history")
    ]
    losses = [row["train/forget_loss"] for row in history if "train/loss" in row]
    lines = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    assert losses == [line["forget_loss"] for line in lines]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert any(row.get("unlearned/toy_retain/perturbed/acc") is not None for row in history)
    assert "base/toy_forget_bio/default/acc" in metrics
    [started] = of_kind(found, "run")[:1]
    assert started.display_name == folder.name
    assert list(started.tags) == ["a"]
    stored = {update.key: json.loads(update.value_json) for update in started.config.update}
    assert stored["method"]["name"] == "rmu"
    assert [e.exit_code for e in of_kind(found, "exit")] == [0]


def test_a_failed_run_is_finished_as_failed(short):
    config = short("tracker=wandb", "method.c=1e30")
    with pytest.raises(UserError):
        run(config)
    assert [e.exit_code for e in of_kind(records(run_folder(config)), "exit")] == [1]
    assert wandb.run is None


def test_runs_do_not_bleed_into_each_other(short):
    outcomes = run_together([short("tracker=wandb", f"rna.nu={nu}") for nu in (0.01, 0.09)])
    folders = [outcome.folder for outcome in outcomes]
    ids = {of_kind(records(folder), "run")[0].run_id for folder in folders}
    assert len(ids) == 2
    for folder in folders:
        rows = of_kind(records(folder), "history")
        assert sum(any("train/loss" in (*i.nested_key, i.key) for i in row.item) for row in rows) == 3


def test_no_tracker_no_files(short):
    folder = run(short("tracker=none"))
    assert not (folder / "wandb").exists()


def test_logged_in_but_out_of_reach_goes_offline_without_a_question(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    wandb.teardown()
    try:
        started = start_wandb(tmp_path, run_id="abc", name="n", **QUIET)
        assert started.settings.mode == "offline"
        started.finish()
    finally:
        wandb.teardown()
    written = b"".join(f.read_bytes() for f in tmp_path.rglob("*") if f.is_file())
    assert b"x" * 40 not in written  # the key is in no file
