"""Check that a user's corpus files have enough documents for training, before anything heavy is imported."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from unlearn.config.schema import Config
from unlearn.errors import UserError


def documents_needed(config: Config) -> int:
    """The number of documents that training takes from each corpus: steps take the topics in turn."""
    topics = len(config.data.use or config.data.topics)
    return -(-config.train.steps // topics) * config.train.batch_size


def check_documents(config: Config) -> None:
    """Raise UserError for a .jsonl or .txt file with fewer lines than training needs documents.

    Other files and data sets of the hub are counted when they are read.
    """
    data, needed = config.data, documents_needed(config)
    least = 1 if data.on_exhausted == "cycle" else needed
    for name in data.use or data.topics:
        for part in ("forget", "retain"):
            file = Path(getattr(data.topics[name], part))
            if file.suffix not in (".jsonl", ".txt") or not file.is_file():
                continue
            lines = _lines(file, least + data.held_out)
            if lines < least + data.held_out:
                raise UserError(
                    f"data.topics.{name}.{part}: {file} has {lines} lines, but training needs {needed} documents"
                    f"{advice(lines, data.held_out)}"
                )


def advice(documents: int, held_out: int) -> str:
    """The end of the sentence about too few documents: how many are kept back, and what to do."""
    kept_back = f", and data.held_out={held_out} more are kept back: lower data.held_out" if held_out else ""
    if documents <= held_out:
        return f"{kept_back}, or give more documents."
    fewer = "lower train.steps or train.batch_size, or set data.on_exhausted=cycle to use documents again."
    return f"{kept_back}, {fewer}" if held_out else f": {fewer}"


def _lines(file: Path, enough: int) -> int:
    with file.open("rb") as lines:
        return sum(1 for _ in islice(lines, enough))
