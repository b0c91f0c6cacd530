"""Topics from a user's texts in memory, in files or on the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from unlearn.data.corpora import Texts, Topic, load_texts, tokenised
from unlearn.errors import UserError
from unlearn.storage.hashing import json_sha256

# The path of a file or folder, a data set on the hub, texts, or the token ids of each text.
Corpus = str | Path | Sequence[str] | Sequence[Sequence[int]]


def make_topic(
    name: str,
    forget: Corpus,
    retain: Corpus,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    max_length: int = 512,
    documents: int,
) -> Topic:
    """A topic with at most `documents` forget texts and as many retain texts, each cut to `max_length` tokens.

    Raises UserError for texts that cannot be used, and if texts are given without a tokenizer. It names the topic.
    """
    forgotten, retained = (
        token_rows(corpus, f"topic {name}, {part}", tokenizer, max_length, documents)
        for part, corpus in (("forget", forget), ("retain", retain))
    )
    return Topic(name, forgotten.rows, retained.rows, {"forget": forgotten.sha256, "retain": retained.sha256})


def token_rows(
    corpus: Corpus, key: str, tokenizer: PreTrainedTokenizerBase | None, max_length: int, documents: int
) -> Texts:
    """The token ids of the first `documents` texts. `key` names the corpus in error messages."""
    if not isinstance(corpus, (str, Path)) and len(corpus) > 0 and not isinstance(corpus[0], str):
        return _given_ids(corpus, key, max_length, documents)
    if tokenizer is None:
        raise UserError(f"{key}: texts need a tokenizer: CutModel(model, layer, tokenizer=tokenizer).")
    if isinstance(corpus, (str, Path)):
        return load_texts(str(corpus), key, tokenizer, max_length=max_length, documents=documents)
    return tokenised(list(corpus[:documents]), key, tokenizer, max_length=max_length)  # type: ignore[arg-type]


def _given_ids(texts: Sequence[Any], key: str, max_length: int, documents: int) -> Texts:
    rows = [list(ids)[:max_length] if isinstance(ids, Sequence) else [] for ids in texts[:documents]]
    for index, row in enumerate(rows):
        if not row or not all(isinstance(token, int) for token in row):
            raise UserError(f"{key}: text {index} is neither a string nor a list of token ids.")
    return Texts(rows, len(texts), json_sha256(rows))


def check_enough(topics: Sequence[Topic], documents: int) -> None:
    """Raise UserError if a topic has fewer texts than training takes."""
    for topic in topics:
        for part, rows in (("forget", topic.forget), ("retain", topic.retain)):
            if len(rows) < documents:
                raise UserError(
                    f"topic {topic.name}, {part}: there are {len(rows)} texts, but training needs {documents}. Lower "
                    "steps or batch_size, or set on_exhausted='cycle' to start over."
                )
