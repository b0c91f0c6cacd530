"""Files are replaced whole, with the permissions of the umask."""

import os
import stat

import pytest
import torch
from safetensors.torch import save_file

from unlearn.storage.files import replacing, write_atomically


@pytest.fixture
def umask():
    """Sets the umask for a test."""
    before = os.umask(0o077)
    os.umask(before)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o002])
def test_a_file_has_the_permissions_of_the_umask_whichever_library_writes_it(tmp_path, umask, mask):
    umask(mask)
    file = tmp_path / "checkpoint.safetensors"
    with replacing(file) as temporary:
        save_file({"w": torch.zeros(2)}, temporary)  # creates a file of mode 0600 and renames it
    write_atomically(tmp_path / "run.json", "{}")
    for written in (file, tmp_path / "run.json"):
        assert stat.S_IMODE(written.stat().st_mode) == 0o666 & ~mask


def interrupted_in(file):
    """A block that is ended while it writes."""
    with replacing(file) as temporary:
        temporary.write_text("sec")
        raise KeyboardInterrupt


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    write_atomically(tmp_path / "a.txt", "first")
    with pytest.raises(KeyboardInterrupt):
        interrupted_in(tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_text() == "first"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]
