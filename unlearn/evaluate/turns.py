"""Which of several processes computes which batch of an evaluation: the one that takes it first.

A process has a place: 0 is the one that the others were started by.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Sharing:
    """One process's part in an evaluation.

    Args:
        folder: of this evaluation's lists of turns, on a disk of this machine.
        place: of this process.
        alive: whether the process at a place goes on. Only the first process can know; the others believe it.
    """

    folder: Path
    place: int
    alive: Callable[[int], bool] = lambda _place: True

    def turns(self, name: str) -> Turns:
        """Those of a plan of this name."""
        return Turns(self.folder / f"{name}.turns", self)


class Turns:
    """The batches of a plan that were taken, in a file: lines of number and place, written under a lock."""

    def __init__(self, file: Path, sharing: Sharing) -> None:
        self._file, self._sharing = file, sharing
        self._taken: dict[int, int] = {}
        self._end = 0

    def take(self, number: int) -> bool:
        """Take a batch, unless another process has."""
        if number in self._taken:
            return False
        with self._file.open("a+b") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)  # given back when the file is closed
            stream.seek(self._end)
            for line in stream:
                other, place = map(int, line.split())
                self._taken[other] = place
            if number not in self._taken:
                stream.write(b"%d %d\n" % (number, self._sharing.place))
                self._taken[number] = self._sharing.place
                stream.flush()
                stream.seek(0, os.SEEK_END)
            self._end = stream.tell()
        return self._taken[number] == self._sharing.place

    def given_up(self, numbers: Sequence[int]) -> list[int]:
        """Those of these batches that were taken by processes that have ended."""
        return [n for n in numbers if not self._sharing.alive(self._taken.get(n, self._sharing.place))]
