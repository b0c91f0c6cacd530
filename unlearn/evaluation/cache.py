"""Results that several runs share, such as the base model's answers, in folders named by what determines them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearn.records.answers import Answers
from unlearn.records.samples import read_samples
from unlearn.records.scores import SCORES, read_scores
from unlearn.storage.hashing import json_sha256
from unlearn.storage.hold import Hold


def cache_place(cache: Path, kind: str, key: dict[str, Any]) -> Path:
    """The folder or file in the cache for a result of this kind, which `key` determines."""
    return cache / kind / json_sha256(key)[:16]


@dataclass(frozen=True)
class CachedAnswers:
    """A model's answers in a folder of the cache: scores and samples, or partial/ until they are complete."""

    folder: Path

    @property
    def partial(self) -> Path:
        """The folder with the journals of an unfinished evaluation."""
        return self.folder / "partial"

    def load(self) -> Answers | None:
        """The answers; None if they are not complete."""
        if not (self.folder / SCORES).is_file():  # it is written last
            return None
        return Answers(read_scores(self.folder), read_samples(self.folder))

    def save(self, answers: Answers, hold: Hold) -> None:
        """Write the answers."""
        with hold.filling(self.folder, last=SCORES) as results:
            answers.write(results)
        hold.remove(self.partial)
