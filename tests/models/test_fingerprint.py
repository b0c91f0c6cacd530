"""Fingerprints tell checkpoints apart."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import ROOT
from unlearn.models.fingerprint import STRIDE, WHOLE_FILE_MAX, checkpoint_fingerprint
from unlearn.models.loading import Source


@pytest.fixture
def checkpoint(tmp_path):
    """A file larger than is hashed whole, with small matrices anywhere in it."""
    shutil.copy(ROOT / "unlearn/toy/model/config.json", tmp_path)
    large = WHOLE_FILE_MAX // 2 // 4
    tensors = {"a": torch.zeros(large), "b": torch.zeros(300, 200), "c": torch.zeros(large), "d": torch.zeros(7)}
    save_file({**tensors, "e": torch.zeros(0)}, tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize("name", ["a", "b", "c", "d"])
def test_another_matrix_is_seen_in_a_large_file(checkpoint, name):
    """As an export leaves it: the same file but for a few matrices."""
    before = checkpoint_fingerprint(Source(str(checkpoint)))
    assert checkpoint_fingerprint(Source(str(checkpoint))) == before
    tensors = load_file(checkpoint / "model.safetensors")
    tensors[name] += 1
    save_file(tensors, checkpoint / "model.safetensors")
    assert checkpoint_fingerprint(Source(str(checkpoint))) != before


@pytest.mark.parametrize(
    ("name", "size", "changed"), [("model.safetensors", WHOLE_FILE_MAX, 1), ("model.bin", WHOLE_FILE_MAX + 5, STRIDE)]
)
def test_a_change_is_seen_in_other_files(tmp_path, name, size, changed):
    """Every byte of a small file; of another one whatever is as large as a small matrix."""
    file = tmp_path / name
    file.write_bytes(bytes(size))
    before = checkpoint_fingerprint(Source(str(tmp_path)))
    with file.open("r+b") as stream:
        stream.seek(WHOLE_FILE_MAX // 3)
        stream.write(b"1" * changed)
    assert checkpoint_fingerprint(Source(str(tmp_path))) != before


def test_a_model_of_the_hub_is_known_by_its_commit_and_runs_offline(tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    place = tmp_path / "home/hub/models--owner--toy"
    (place / "refs").mkdir(parents=True)
    (place / "refs/main").write_text(commit)
    shutil.copytree(ROOT / "unlearn/toy/model", place / "snapshots" / commit)
    offline = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    job = [
        "model.path=owner/toy",
        "train.steps=2",
        "eval=toy",
        "eval.limit=2",
        "tracker=none",
        f"output_root={tmp_path}",
    ]
    for command in (["-m", "unlearn", "prefetch"], ["launch.py"]):
        done = subprocess.run([sys.executable, *command, *job], cwd=ROOT, env=offline, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    [record] = (tmp_path / "runs").glob("*/run.json")
    assert json.loads(record.read_text())["inputs"]["model"] == commit
