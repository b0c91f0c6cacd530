"""Check that a user's corpus files have enough documents for training, before anything heavy is imported."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from unlearn.config.schema import Config
from unlearn.data.counting import documents_needed, too_few
from unlearn.errors import UserError


def check_documents(config: Config) -> None:
    """Raise UserError for a .jsonl or .txt file with fewer lines than training needs documents.

    Other files and data sets of the hub are counted when they are read.
    """
    data, train = config.data, config.train
    needed = documents_needed(train.steps, train.batch_size, len(data.use or data.topics))
    least = 1 if data.on_exhausted == "cycle" else needed
    for name in data.use or data.topics:
        for part in ("forget", "retain"):
            file = Path(getattr(data.topics[name], part))
            if file.suffix not in (".jsonl", ".txt") or not file.is_file():
                continue
            lines = _lines(file, least + data.held_out)
            if lines < least + data.held_out:
                key, count = f"data.topics.{name}.{part}", f"{file} has {lines} lines"
                raise UserError(too_few(key, count, lines, needed, data.held_out))


def _lines(file: Path, enough: int) -> int:
    with file.open("rb") as lines:
        return sum(1 for _ in islice(lines, enough))
