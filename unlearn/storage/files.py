"""Atomic files, which are either complete or absent: a temporary file next to the target, fsync, rename."""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from unlearn.errors import UserError


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Yield a temporary file for the block to write. At its end it replaces `file`; after an error it is removed.

    The name of the temporary file differs between processes and machines, and ends in .tmp.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_name(f".{file.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    try:
        yield scratch
        _to_disk(scratch)
        scratch.replace(file)
        with suppress(OSError):  # some file systems cannot synchronise folders
            _to_disk(file.parent)
    finally:
        scratch.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Raise UserError if no file can be made in a folder, which is made if it is not there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written to ({error.strerror}). output_root=DIR chooses another place."
        ) from None


def check_space(folder: Path, needed: int) -> None:
    """Raise UserError if the disk of a folder has fewer bytes left than are needed."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder}: {free / 2**30:.1f} GB are free on its disk, and deltas and checkpoints need "
            f"{needed / 2**30:.1f} GB. output_root=DIR chooses another place."
        )


def write_atomically(file: Path, content: str | bytes) -> None:
    """Replace a file's content."""
    with replacing(file) as scratch:
        scratch.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(file: Path, content: Any) -> None:
    """Replace a file's content by indented JSON."""
    write_atomically(file, json.dumps(content, indent=2) + "\n")


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object. Raises UserError if the file cannot be read or holds no object."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: not a JSON object")
    return content


def remove_scratch(folder: Path) -> None:
    """Remove the temporary files that killed processes left in and below a folder which nobody else writes to."""
    for scratch in folder.rglob(".*.tmp"):
        scratch.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
