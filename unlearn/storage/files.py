"""Atomic files, which are either complete or absent: a temporary file next to the target, fsync, rename."""

from __future__ import annotations

import json
import os
import socket
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
