"""Files that are whole or absent, whatever happens: a temporary file beside the target, fsync, rename."""

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
    """A temporary file for the block to write; at its end it takes the place of `file`, on disk, or vanishes.

    The name of the temporary file differs between processes and machines, and ends in .tmp.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_name(f".{file.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    try:
        yield scratch
        _to_disk(scratch)
        scratch.replace(file)
        with suppress(OSError):  # not every file system knows folders that are synchronised
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
    """A JSON object. Raises UserError for a file that cannot be read, or that is none."""
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
