"""Writing into a folder that one process at a time holds.

The holder has a folder of its own, FOLDER/.unlearn-lock/NAME, and NAME is never used again. Everything is made there
and put in place by a rename; what is removed is first moved there. Whoever takes FOLDER over first moves
.unlearn-lock/NAME away. From then on every rename of the earlier holder fails, also one that it was just about to make
when it was stopped. Hard links are not needed.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from unlearn.errors import UserError
from unlearn.storage.files import discard, replacing, synchronise_folder

LOCK = ".unlearn-lock"  # in the folder that is held


class Lost(UserError):
    """Another process has taken the folder over."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            f"{folder}: this process has lost the lock, as another one took the folder over while it gave no sign of "
            "life. It stops, and writes nothing more there."
        )
        self.folder = folder


class Hold:
    """One process's hold on a folder. Whatever it changes there, it changes through this.

    Every method raises Lost, and changes nothing, if another process has taken the folder over.

    Args:
        place: FOLDER/.unlearn-lock/NAME.
    """

    def __init__(self, place: Path) -> None:
        self.place, self.folder = place, place.parent.parent

    def check(self) -> None:
        """Raise Lost if another process has taken the folder over."""
        with suppress(OSError):  # a disk that does not answer: the next write will say so
            if not self.place.is_dir():
                raise Lost(self.folder)

    @contextmanager
    def replacing(self, file: Path) -> Iterator[Path]:
        """Yield an empty temporary file for the block to write. It then replaces `file`."""
        with self._noticing(), replacing(self._ready(file), self._scratch(file)) as scratch:
            yield scratch

    def write(self, file: Path, content: str | bytes) -> None:
        """Replace a file's content."""
        with self.replacing(file) as scratch:
            scratch.write_bytes(content.encode() if isinstance(content, str) else content)

    def write_json(self, file: Path, content: Any) -> None:
        """Replace a file's content by indented JSON."""
        self.write(file, json.dumps(content, indent=2) + "\n")

    @contextmanager
    def filling(self, folder: Path, last: str) -> Iterator[Path]:
        """Yield an empty folder for the block to fill. It then becomes `folder`, with all its files at once.

        If `folder` exists, its files are replaced one by one, the one named `last` at the end; its others stay.
        """
        with self._noticing():
            self._ready(folder)
            scratch = self._scratch(folder)
            scratch.mkdir()
            yield scratch
            synchronise_folder(scratch)
            if folder.exists():
                for file in sorted(scratch.iterdir(), key=lambda file: file.name == last):
                    file.replace(folder / file.name)
                synchronise_folder(folder)
            else:
                scratch.replace(folder)
            synchronise_folder(folder.parent)

    def remove(self, path: Path) -> None:
        """Remove a file, a link, or a folder with all that is in it, if there is one."""
        self.check()
        if not os.path.lexists(path):
            return
        removed = self._scratch(path)
        with self._noticing():
            path.rename(removed)
        discard(removed)

    def _ready(self, path: Path) -> Path:
        """The path, whose parent folder is made."""
        self.check()
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _scratch(self, path: Path) -> Path:
        return self.place / f"{uuid.uuid4().hex}-{path.name}"

    @contextmanager
    def _noticing(self) -> Iterator[None]:
        """Raise Lost in place of an error inside the block that comes from having lost the folder."""
        try:
            yield
        except Exception:
            self.check()
            raise
