"""Results that several runs share, such as the base model's answers, in folders named by what determines them."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearn.evaluate.harness import Answers
from unlearn.storage.files import write_json
from unlearn.storage.hashing import json_sha256


def cache_place(cache: Path, kind: str, key: dict[str, Any]) -> Path:
    """The place below the cache folder of the result of this kind that `key` determines."""
    return cache / kind / json_sha256(key)[:16]


@dataclass(frozen=True)
class CachedAnswers:
    """A model's answers in a folder of the cache: metrics.json and samples/, or, until all are there, partial/."""

    folder: Path

    @property
    def partial(self) -> Path:
        """The journals of an evaluation that is not finished."""
        return self.folder / "partial"

    def load(self) -> Answers | None:
        """The answers, or None if they are not all there."""
        file = self.folder / "metrics.json"
        if not file.is_file():
            return None
        samples = self.folder / "samples"
        records = {
            str(f.relative_to(samples).with_suffix("")): [json.loads(line) for line in f.read_text().splitlines()]
            for f in sorted(samples.rglob("*.jsonl"))
        }
        others = {str(f.relative_to(samples)): f.read_bytes() for f in sorted(samples.rglob("*.parquet"))}
        return Answers(json.loads(file.read_text()), records, others)

    def save(self, answers: Answers) -> None:
        """Write the answers. metrics.json comes last: where it is, all is there."""
        answers.write_samples(self.folder / "samples")
        write_json(self.folder / "metrics.json", answers.metrics)
        shutil.rmtree(self.partial, ignore_errors=True)
