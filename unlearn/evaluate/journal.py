"""Journals: the results of an evaluation on disk, batch by batch, so that an interrupted one can be resumed.

All batches are planned first, and then those in the journal are skipped. So the batches, and every bit of the results,
are the same as without interruption.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from unlearn.storage.files import write_atomically

Report = Callable[[str, int, int], None]  # phase, requests done, requests in all


def fingerprint(sequences: Iterable[Iterable[int]], *others: Any) -> str:
    """SHA-256 of sequences of integers and anything that JSON can hold."""
    digest = hashlib.sha256(json.dumps(others).encode())
    for sequence in sequences:
        values = array("q", sequence)
        digest.update(len(values).to_bytes(8, "little"))
        digest.update(values)
    return digest.hexdigest()


@dataclass(frozen=True)
class Journals:
    """The journals of one evaluation.

    Args:
        folder: where they are kept; None keeps none.
        key: identifies the weights that are asked. A journal of other weights is dropped.
        report: is called with the progress.
    """

    folder: Path | None = None
    key: str = ""
    report: Report = lambda _phase, _done, _total: None

    def open(self, name: str, plan: str) -> Journal:
        """The journal of this name for a plan, which is given by its fingerprint."""
        return Journal(None if self.folder is None else self.folder / f"{name}.jsonl", [self.key, plan])


NO_JOURNALS = Journals()


class Journal:
    """A file with a line for each finished batch: its number and its result. The first line identifies the plan.

    Lines of another plan and incomplete lines are dropped.
    """

    def __init__(self, file: Path | None, plan: Any) -> None:
        self.done: dict[int, Any] = {}
        self._stream = None
        if file is not None:
            self.done = _read(file, plan)
            lines = [json.dumps({"plan": plan}), *(json.dumps(entry) for entry in self.done.items())]
            write_atomically(file, "".join(line + "\n" for line in lines))
            self._stream = file.open("a", encoding="utf-8")

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
            self._stream.write(json.dumps([number, result]) + "\n")
            self._stream.flush()


def _read(file: Path, plan: Any) -> dict[int, Any]:
    if not file.is_file():
        return {}
    head, *lines = file.read_text(encoding="utf-8").split("\n")
    found: dict[int, Any] = {}
    try:
        if json.loads(head) == {"plan": plan}:
            for number, result in map(json.loads, lines):
                found[number] = result
    except ValueError:
        pass  # an incomplete last line, of a process that was killed, or the empty end of the file
    return found
