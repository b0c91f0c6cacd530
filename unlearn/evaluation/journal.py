"""Journals: the results of an evaluation on disk, batch by batch, so that an interrupted one can be resumed.

All batches are planned first, and then those in the journal are skipped. So the batches, and every bit of the results,
are the same as without interruption.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from unlearn.storage.files import replacing
from unlearn.storage.hold import Hold

Report = Callable[[str, int, int], None]  # phase, requests done, requests in all


@dataclass(frozen=True)
class Journals:
    """The journals of one evaluation of one model.

    Args:
        folder: where they are kept; None keeps none.
        key: identifies the weights that are asked. A journal of other weights is dropped.
        report: is called with the progress.
        hold: on the folder in which `folder` is; None if no other process works there.
    """

    folder: Path | None = None
    key: str = ""
    report: Report = lambda _phase, _done, _total: None
    hold: Hold | None = None

    def open(self, name: str, plan: str) -> Journal:
        """The journal of this name for a plan, which is given by its fingerprint."""
        plan = json.dumps([self.key, plan])
        return Journal(self.folder, name, plan, replacing if self.hold is None else self.hold.replacing)


NO_JOURNALS = Journals()


class Journal:
    """A file with a line for each finished batch: its number and its result. The first line identifies the plan.

    A file of another plan, incomplete lines, and all lines after a damaged one count for nothing.

    Each attempt writes a new file, which begins with what counts in the earlier one. So a process that has lost the
    folder can add nothing to the file of the one that has taken it over. `replace` is `Hold.replacing`.
    """

    def __init__(
        self,
        folder: Path | None,
        name: str,
        plan: str,
        replace: Callable[[Path], AbstractContextManager[Path]] = replacing,
    ) -> None:
        self.done: dict[int, Any] = {}
        self._stream: BinaryIO | None = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / f"{name}.jsonl"
            earlier = self._read(file, plan.encode() + b"\n")
            with replace(file) as scratch:
                self._stream = scratch.open("wb")
                self._stream.write(earlier)
                self._stream.flush()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.close()

    def add(self, number: int, result: Any) -> None:
        """Write the result of a batch."""
        self.done[number] = result
        if self._stream is not None:
            self._stream.write(json.dumps([number, result]).encode() + b"\n")
            self._stream.flush()

    def _read(self, file: Path, first_line: bytes) -> bytes:
        """Read the results of an earlier attempt; returns the lines that count, the first one at least."""
        counting = first_line
        lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
        for line in lines[1:] if lines[:1] == [first_line] else []:
            try:
                if not line.endswith(b"\n"):
                    break
                number, result = json.loads(line)
                self.done[number] = result
            except (ValueError, TypeError):
                break
            counting += line
        return counting


def journaled(
    journals: Sequence[Journals],
    name: str,
    plan: str,
    count: int,
    compute: Callable[[int, list[int]], Sequence[Any]],
) -> Iterator[tuple[int, list[Any]]]:
    """Yield the number of each of `count` batches and its result for each model: from their journals, or computed.

    Args:
        journals: one for each model.
        name: of the files.
        plan: the fingerprint of all batches.
        compute: (number of a batch, numbers of models) -> the batch's result for each of these models.
    """
    with ExitStack() as stack:
        opened = [stack.enter_context(of_model.open(name, plan)) for of_model in journals]
        for number in range(count):
            missing = [i for i, journal in enumerate(opened) if number not in journal.done]
            results = compute(number, missing) if missing else []
            for i, result in zip(missing, results, strict=True):
                opened[i].add(number, result)
            yield number, [journal.done[number] for journal in opened]


def fingerprint(sequences: Iterable[Iterable[int]], *others: Any) -> str:
    """SHA-256 of sequences of integers and anything that JSON can hold."""
    digest = hashlib.sha256(json.dumps(others).encode())
    for sequence in sequences:
        values = array("q", sequence)
        digest.update(len(values).to_bytes(8, "little"))
        digest.update(values)
    return digest.hexdigest()
