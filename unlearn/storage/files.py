"""Atomic files, which are either complete or absent: a temporary file next to the target, fsync, rename."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from unlearn.errors import UserError

TEMPORARY = ".unlearn-tmp"  # how the names of temporary files end


@contextmanager
def replacing(file: Path, scratch: Path | None = None) -> Iterator[Path]:
    """Yield an empty temporary file for the block to write. It then replaces `file`, or is removed after an error.

    The file gets the permissions that the umask gives, also where a library creates its own with fewer. Its folder must
    be there. The temporary file is next to `file`, unless `scratch` names another place on the same disk.
    """
    if scratch is None:
        scratch = file.with_name(f".{file.name}.{socket.gethostname()}-{os.getpid()}{TEMPORARY}")
    try:
        scratch.touch()
        mode = stat.S_IMODE(scratch.stat().st_mode)
        yield scratch
        if stat.S_IMODE(scratch.stat().st_mode) != mode:
            scratch.chmod(mode)
        _to_disk(scratch)
        scratch.replace(file)
        synchronise_folder(file.parent)
    finally:
        scratch.unlink(missing_ok=True)


def check_writable(folder: Path, advice: str = "Set output_root=DIR to another folder.") -> None:
    """Make the folder if it does not exist. Raises UserError, with the advice, if no file can be made in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder}: not writable ({error.strerror}). {advice}") from None


def no_such_file(path: str) -> str:
    """Says that a file does not exist, and from which folder a relative path starts."""
    return "there is no such file" + ("." if Path(path).is_absolute() else f" in {Path.cwd()}.")


def check_space(folder: Path, needed: int) -> None:
    """Raise UserError if the folder's disk has fewer than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder}: its disk has {free / 2**30:.1f} GB free; deltas and checkpoints need "
            f"{needed / 2**30:.1f} GB. Set output_root=DIR to another folder."
        )


def write_atomically(file: Path, content: str | bytes) -> None:
    """Replace a file's content, or make the file. Its folder must be there."""
    with replacing(file) as scratch:
        scratch.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(file: Path, content: Any) -> None:
    """Replace a file's content by indented JSON."""
    write_atomically(file, json.dumps(content, indent=2) + "\n")


def synchronise_folder(folder: Path) -> None:
    """Write to disk which files a folder has, where the file system can do that."""
    with suppress(OSError):
        _to_disk(folder)


def discard(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it, as far as possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
