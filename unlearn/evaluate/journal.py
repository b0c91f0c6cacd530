"""Journals: the results of an evaluation on disk, batch by batch, so that an interrupted one can be resumed.

All batches are planned first, and then those in the journal are skipped. So the batches, and every bit of the results,
are the same as without interruption. In the same way several processes share an evaluation: all of them plan all
batches, each computes some and reads the others from the journals of the others (`unlearn.evaluate.turns`).
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from unlearn.evaluate.turns import Sharing
from unlearn.storage.files import write_atomically

POLL_S = 0.2  # seconds between looks at the journals of other processes

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
    """The journals of one evaluation of one model.

    Args:
        folder: where they are kept; None keeps none.
        key: identifies the weights that are asked. A journal of other weights is dropped.
        report: is called with the progress.
        sharing: with which other processes the work is shared; None: with none.
    """

    folder: Path | None = None
    key: str = ""
    report: Report = lambda _phase, _done, _total: None
    sharing: Sharing | None = None

    def open(self, name: str, plan: str) -> Journal:
        """The journal of this name for a plan, which is given by its fingerprint."""
        place = self.sharing.place if self.sharing else 0
        return Journal(None if self.folder is None else self.folder / f"{name}.jsonl", [self.key, plan], place)


NO_JOURNALS = Journals()


class Journal:
    """A file with a line for each finished batch: its number and its result. The first line identifies the plan.

    Lines of another plan and incomplete lines are dropped. Process `place` of those that share an evaluation writes
    NAME.PLACE.jsonl, the first one NAME.jsonl. Each reads all.
    """

    def __init__(self, file: Path | None, plan: Any, place: int = 0) -> None:
        self.done: dict[int, Any] = {}
        self._file, self._plan = file, plan
        self._own: Path | None = None
        self._stream: TextIO | None = None
        self._readers: dict[Path, _Reader] = {}
        self.read()
        if file is not None:
            own = file.with_suffix(f".{place}.jsonl") if place else file
            self._readers.pop(own, None)
            lines = [json.dumps({"plan": plan}), *(json.dumps(entry) for entry in self.done.items())]
            write_atomically(own, "".join(line + "\n" for line in lines))
            self._own, self._stream = own, own.open("a", encoding="utf-8")

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

    def read(self) -> None:
        """Take over what other processes have written since the last time."""
        for file in [] if self._file is None else self._file.parent.glob(f"{self._file.stem}.*jsonl"):
            if file != self._own:
                self.done |= self._readers.setdefault(file, _Reader(file, self._plan)).more()


class _Reader:
    """Reads a journal that grows: whole lines, as far as they are of this plan."""

    def __init__(self, file: Path, plan: Any) -> None:
        self._file, self._head = file, {"plan": plan}
        self._inode = self._read_up_to = 0
        self._of_this_plan = False

    def more(self) -> dict[int, Any]:
        """What was added since the last time; all, if it is another file by now."""
        with self._file.open("rb") as stream:
            inode = os.fstat(stream.fileno()).st_ino
            if inode != self._inode:
                self._inode, self._read_up_to, self._of_this_plan = inode, 0, True
            stream.seek(self._read_up_to)
            added = stream.read()
        whole = added[: added.rfind(b"\n") + 1]
        found: dict[int, Any] = {}
        for number, line in enumerate(whole.splitlines()):
            try:
                entry = json.loads(line)
            except ValueError:  # no journal, or damaged from here on
                self._of_this_plan = False
            if number == 0 and self._read_up_to == 0:
                self._of_this_plan = self._of_this_plan and entry == self._head
            elif self._of_this_plan:
                found[entry[0]] = entry[1]
            if not self._of_this_plan:
                break
        self._read_up_to += len(whole)
        return found


class Work:
    """The batches of a plan, to be computed for several models: those in their journals are done already.

    Other processes may compute some of them (`Journals.sharing`, the same for all models).
    """

    def __init__(self, journals: Sequence[Journals], name: str, plan: str, count: int) -> None:
        self._journals, self._name, self._plan, self._count = journals, name, plan, count
        sharing = journals[0].sharing
        self._turns = sharing.turns(fingerprint([], name, plan, [j.key for j in journals])) if sharing else None

    def results(self, compute: Callable[[int, list[int]], Sequence[Any]]) -> Iterator[tuple[int, list[Any]]]:
        """Yield each batch's number and its result for each model, as soon as it is there.

        `compute(number, models)` gives the results of a batch for some of the models, by their numbers.
        """
        with ExitStack() as stack:
            opened = [stack.enter_context(journals.open(self._name, self._plan)) for journals in self._journals]

            def done(number: int) -> bool:
                return all(number in journal.done for journal in opened)

            def known(number: int) -> tuple[int, list[Any]]:
                missing = [i for i, journal in enumerate(opened) if number not in journal.done]
                found = compute(number, missing) if missing else []
                for i, result in zip(missing, found, strict=True):
                    opened[i].add(number, result)
                return number, [journal.done[number] for journal in opened]

            left = []
            for number in range(self._count):
                if done(number) or self._turns is None or self._turns.take(number):
                    yield known(number)
                else:
                    left.append(number)
            while left:
                assert self._turns is not None
                for journal in opened:
                    journal.read()
                ready = [number for number in left if done(number)] or self._turns.given_up(left)[:1]
                for number in ready:
                    left.remove(number)
                    yield known(number)
                if not ready:
                    time.sleep(POLL_S)
