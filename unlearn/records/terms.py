"""What the words are like that were inserted into a run's held-out texts, by the base model: RUN/terms.json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import FiniteFloat, TypeAdapter

from unlearn.storage.schema import Integer, read_as

TERMS = "terms.json"


@dataclass(frozen=True)
class TermProperties:
    """Properties of a word or term that may tell what it costs.

    Args:
        tokens: the number of its tokens in the middle of a text.
        count: how often it is in the forget texts as training reads them.
        similarity: of its states at layer l, where it is inserted, to those of the forget texts: the cosine between
            their means, from both of which the mean over all corpora is taken off. Of several topics, the nearest.
    """

    tokens: Integer
    count: Integer
    similarity: FiniteFloat


_TERMS: TypeAdapter[dict[str, TermProperties]] = TypeAdapter(dict[str, TermProperties])


def read_terms(folder: Path) -> dict[str, TermProperties]:
    """The properties of each word in a run's terms.json; empty without one.

    Raises UserError for a file that cannot be read or is of another form.
    """
    return read_as(_TERMS, folder / TERMS) if (folder / TERMS).exists() else {}
