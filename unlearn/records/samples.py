"""Samples, a row for each model's answer to a question or for its likelihood of a text, and their file."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING
from zlib import crc32

import pyarrow as pa  # type: ignore[import-untyped]

from unlearn.records.tables import read_rows, write_rows

if TYPE_CHECKING:
    import pandas as pd

SAMPLES = "samples.parquet"
LATER = ("inserted", "choices", "agreement", "fact")  # columns that earlier files lack: their cells are empty
REQUIRED = ("model", "role", "task", "query", "id", "question")  # columns without empty cells


@dataclass(frozen=True)
class Sample:
    """What one model made of one question, or of one held-out text.

    Args:
        model, role, task, query: see `Score`; the task is never a group.
        id: the number of the question in its task, or of the text in its corpus.
        question: a hash of what the model was given and of the right answer. Samples of two runs can be paired where it
            is the same.
        correct: whether the answer is right; None where the task does not say so of a single question, and where a
            log-likelihood is not finite. Then `score` and `choice` are None, too.
        score: the question's accuracy where it is a share.
        choice: the number of the option with the highest log-likelihood.
        loglikelihoods: of each option, in nats.
        nats, tokens: negative log-likelihood of a held-out text, in nats, and the number of tokens that it is of.
        choices: the model's first choice, a token id, in the place of each of these tokens.
        agreement: of the unlearned model, the share of these tokens at which its first choice is the base model's,
            which reads the same text with the same words in it.
        inserted: the word or term that was inserted into a held-out text, or that an option became; several are joined
            by ". ".
        maxlogits: the largest logit at each of the first greedy tokens behind the query (Eq. 11).
        maxlogit_tokens: the ids of these tokens.
        fact: a hash of what the question asks about, where its task says that several questions ask about one fact
            (`metadata.fact`, a column of its documents). Such questions are not independent.
    """

    model: str
    role: str
    task: str
    query: str
    id: int
    question: str
    correct: bool | None = None
    score: float | None = None
    choice: int | None = None
    loglikelihoods: list[float] | None = None
    nats: float | None = None
    tokens: int | None = None
    maxlogits: list[float] | None = None
    maxlogit_tokens: list[int] | None = None
    inserted: str | None = None
    choices: list[int] | None = None
    agreement: float | None = None
    fact: str | None = None

    @property
    def is_finite(self) -> bool:
        """Whether its log-likelihoods are numbers, not NaN or infinite."""
        return all(map(math.isfinite, (*(self.loglikelihoods or ()), 0.0 if self.nats is None else self.nats)))

    @property
    def item(self) -> tuple[str, str]:
        """What intervals count as one: the question or text, or the fact that it and others ask about."""
        return self.task, str(self.id) if self.fact is None else self.fact

    @property
    def value(self) -> float | None:
        """What paired tests compare: correctness as 0 or 1, of texts nats a token; None without a finite one."""
        if self.nats is not None:
            return self.nats / self.tokens if self.tokens and math.isfinite(self.nats) else None
        return None if self.correct is None else float(self.correct)


def half_of(item: Hashable) -> int:
    """The half of all items, 0 or 1, to which one belongs, in all runs: one half chooses, the other one judges."""
    return crc32(str(item).encode()) % 2


SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("model", "role", "task", "query")]
    + [("id", pa.int64()), ("question", pa.string())]
    + [("correct", pa.bool_()), ("score", pa.float64()), ("choice", pa.int64())]
    + [("loglikelihoods", pa.list_(pa.float64())), ("nats", pa.float64()), ("tokens", pa.int64())]
    + [("maxlogits", pa.list_(pa.float32())), ("maxlogit_tokens", pa.list_(pa.int64()))]
    + [("inserted", pa.string())]
    + [("choices", pa.list_(pa.int64())), ("agreement", pa.float64()), ("fact", pa.string())]
)
assert SCHEMA.names == [field.name for field in fields(Sample)]


def write_samples(folder: Path, samples: Iterable[Sample]) -> None:
    """Write `folder`/samples.parquet, a row for each sample."""
    write_rows(folder / SAMPLES, [vars(sample) for sample in samples], SCHEMA)


def read_samples(folder: Path) -> list[Sample]:
    """The rows of `folder`/samples.parquet. Raises UserError if it cannot be read or has other columns."""
    return [Sample(**row) for row in read_rows(folder / SAMPLES, SCHEMA, REQUIRED, later=LATER)]


def sample_frame(samples: Iterable[Sample]) -> pd.DataFrame:
    """The samples as a data frame, with the columns of `Sample` and `value`."""
    import pandas as pd

    rows = [{**vars(sample), "value": sample.value} for sample in samples]
    return pd.DataFrame(rows, columns=[*SCHEMA.names, "value"])


def guessing_accuracy(folder: Path, role: str) -> float | None:
    """The expected accuracy of guessing on a role's multiple-choice questions; None if it has none or no samples."""
    if not (folder / SAMPLES).is_file():
        return None
    asked = read_rows(folder / SAMPLES, SCHEMA, REQUIRED, {"role": role, "query": "default"}, later=LATER)
    options = [len(values) for sample in asked if (values := sample["loglikelihoods"]) and len(values) > 1]
    return sum(1 / count for count in options) / len(options) if options else None
