"""Lists of n-grams by similarity to their document (section 6.7), and their file, RUN/ngrams.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import FiniteFloat, TypeAdapter

from unlearn.storage.schema import read_as

NGRAMS = "ngrams.json"


@dataclass(frozen=True)
class Ngram:
    """An n-gram and its similarity to its document."""

    ngram: str
    similarity: FiniteFloat


@dataclass(frozen=True)
class NgramLists:
    """The n-grams of one size: the most and least similar ones, those nearest to the mean, and of how many they are."""

    most: list[Ngram]
    least: list[Ngram]
    mean: list[Ngram]
    mean_similarity: FiniteFloat
    count: int

    def of_kind(self, kind: str) -> list[Ngram]:
        """The list called "most", "least" or "mean"."""
        return {"most": self.most, "least": self.least, "mean": self.mean}[kind]


Sizes = Mapping[str, NgramLists]  # number of words -> its lists
_SIZES: TypeAdapter[Sizes] = TypeAdapter(Sizes)


def as_json(sizes: Sizes) -> dict[str, Any]:
    """The lists as a file holds them."""
    return {size: asdict(lists) for size, lists in sizes.items()}


def read_ngrams(file: Path) -> Sizes:
    """The lists of a file. Raises UserError if it cannot be read or is of another form."""
    return read_as(_SIZES, file)
