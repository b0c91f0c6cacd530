"""Fingerprints tell checkpoints apart."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import ROOT
from unlearn.models.fingerprint import SMALL, checkpoint_fingerprint
from unlearn.models.loading import Source


@pytest.fixture
def checkpoint(tmp_path):
    """A file larger than is hashed whole, with small matrices anywhere in it."""
    shutil.copy(ROOT / "unlearn/toy/model/config.json", tmp_path)
    large = SMALL // 2 // 4
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


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_every_byte_of_other_files_is_seen(tmp_path, name):
    file = tmp_path / name
    file.write_bytes(bytes(SMALL if file.suffix == ".safetensors" else SMALL + 5))
    before = checkpoint_fingerprint(Source(str(tmp_path)))
    with file.open("r+b") as stream:
        stream.seek(SMALL // 3)
        stream.write(b"1")
    assert checkpoint_fingerprint(Source(str(tmp_path))) != before
