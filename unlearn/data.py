"""From corpora to batches of token ids: what is forgotten and what is retained, topic by topic.

A corpus is a file (.jsonl with {"text": ...} a line, or .txt with a document a line) or a data set of the hub,
written hub:REPOSITORY:CONFIGURATION:SPLIT. Documents are taken in file order. B batch, T tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from unlearn.errors import UserError


@dataclass(frozen=True)
class Corpus:
    """Documents in order, where each came from, and the SHA-256 of the whole."""

    texts: list[str]
    places: list[str]  # "FILE:LINE" or "REPOSITORY row N", for error messages
    sha256: str


@dataclass(frozen=True)
class Topic:
    """One topic's tokenised documents, as many as training needs (or all, to be cycled through)."""

    name: str
    forget: list[list[int]]
    retain: list[list[int]]
    sha256: dict[str, str]  # {"forget": ..., "retain": ...}


@dataclass(frozen=True)
class Padded:
    """A batch of token ids: int64 [B, T], and which positions are real tokens: bool [B, T]."""

    ids_BT: Tensor
    mask_BT: Tensor

    def to(self, device: torch.device) -> Padded:
        """The same batch on another device."""
        return Padded(self.ids_BT.to(device), self.mask_BT.to(device))


@dataclass(frozen=True)
class Batch:
    """What one step of Algorithm 1 trains on."""

    step: int
    topic: str
    forget: Padded
    retain: Padded


def read_corpus(path: str, key: str) -> Corpus:
    """Read a corpus whole and check every document.

    `key` is the configuration key that names it. Raises UserError with file and line for a malformed line, a
    missing or blank `text`, an empty or missing file, and says how to get a gated data set.
    """
    if path.startswith("hub:"):
        return _read_hub(path, key)
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{key}={path}: there is no such file.")
    raw = file.read_bytes()
    try:
        lines = raw.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UserError(f"{key}: {file}:{line}: not UTF-8 text ({error.reason}).") from None
    documents = _jsonl_documents if file.suffix in (".jsonl", ".json") else _text_documents
    found = list(documents(lines, str(file), key))
    if not found:
        raise UserError(f"{key}: {file} holds no document.")
    return Corpus([t for t, _ in found], [p for _, p in found], hashlib.sha256(raw).hexdigest())


def stream_corpus(path: str) -> Iterator[str]:
    """The texts of a corpus that `read_corpus` has found to be in order, one at a time."""
    if path.startswith("hub:"):
        import datasets

        _, repository, name, split = path.split(":")
        yield from (row["text"] for row in datasets.load_dataset(repository, name, split=split) if row["text"].strip())
        return
    structured = Path(path).suffix in (".jsonl", ".json")
    with Path(path).open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            if line.strip():
                yield json.loads(line)["text"] if structured else line.rstrip("\n")


def _jsonl_documents(lines: list[str], file: str, key: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(lines, start=1):
        place = f"{file}:{number}"
        if not line.strip():
            if number < len(lines):
                raise UserError(f"{key}: {place}: the line is blank.")
            continue  # what follows the last newline
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{key}: {place}: not valid JSON ({error.msg}, column {error.colno}).") from None
        if not isinstance(row, dict) or "text" not in row:
            raise UserError(f'{key}: {place}: there is no "text". A line looks like {{"text": "..."}}.')
        yield _checked_text(row["text"], place, key), place


def _text_documents(lines: list[str], file: str, _key: str) -> Iterator[tuple[str, str]]:
    """Every line with something in it is a document, as in Wikitext-2 (raw)."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield line, f"{file}:{number}"


def _checked_text(text: object, place: str, key: str) -> str:
    if not isinstance(text, str):
        raise UserError(f'{key}: {place}: "text" is {type(text).__name__}, not a string.')
    if not text.strip():
        raise UserError(f'{key}: {place}: "text" is blank.')
    return text


def _read_hub(path: str, key: str) -> Corpus:
    import datasets
    from huggingface_hub.errors import GatedRepoError

    parts = path.split(":")
    if len(parts) != 4 or not all(parts):
        raise UserError(f"{key}={path}: write hub:REPOSITORY:CONFIGURATION:SPLIT.")
    _, repository, name, split = parts
    try:
        rows = datasets.load_dataset(repository, name, split=split)
    except Exception as error:  # the hub's errors share no base class
        chain = (error, error.__cause__, error.__context__)
        gated = any(isinstance(e, (GatedRepoError, datasets.exceptions.DatasetNotFoundError)) for e in chain)
        advice = (
            f"If it is gated: ask for access at https://huggingface.co/datasets/{repository} and log in with "
            f"`hf auth login`; or set {key}=FILE.jsonl to a copy of your own ({{"
            '"text": ...} a line).'
        )
        why = "not found, or not open to you" if gated else str(error)
        raise UserError(f"{key}={path}: {why}. {advice}") from error
    if "text" not in rows.column_names:
        raise UserError(f'{key}={path}: there is no column "text" among {", ".join(rows.column_names)}.')
    kept = [(text, f"{repository} row {i}") for i, text in enumerate(rows["text"]) if text.strip()]
    digest = hashlib.sha256()
    for text, _ in kept:
        digest.update(text.encode() + b"\n")
    if not kept:
        raise UserError(f"{key}={path} holds no document.")
    return Corpus([t for t, _ in kept], [p for _, p in kept], digest.hexdigest())


def load_topic(
    name: str,
    forget: str,
    retain: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    retain_max_length: int,
    documents: int,
    on_exhausted: str,
) -> Topic:
    """Read and tokenise one topic's corpora.

    Args:
        documents: how many documents training will take from each corpus.
        on_exhausted: if a corpus has fewer, "error" raises UserError and "cycle" starts over.
    """
    parts: dict[str, list[list[int]]] = {}
    hashes: dict[str, str] = {}
    for part, path, length in (("forget", forget, max_length), ("retain", retain, retain_max_length)):
        key = f"data.topics.{name}.{part}"
        corpus = read_corpus(path, key)
        if len(corpus.texts) < documents and on_exhausted == "error":
            raise UserError(
                f"{key}: the corpus has {len(corpus.texts)} documents and training needs {documents}. Lower "
                f"train.steps or train.batch_size, or set data.on_exhausted=cycle to start over."
            )
        parts[part] = _tokenise(corpus, tokenizer, length, documents, key)
        hashes[part] = corpus.sha256
    return Topic(name, parts["forget"], parts["retain"], hashes)


def _tokenise(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, max_length: int, documents: int, key: str
) -> list[list[int]]:
    texts = corpus.texts[:documents]
    encoded = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    for ids, place in zip(encoded, corpus.places, strict=False):
        if not any(i not in special for i in ids):
            raise UserError(f"{key}: {place}: the text has no tokens of its own for this model's tokenizer.")
    return encoded


def batches(topics: Sequence[Topic], *, steps: int, batch_size: int, pad_id: int, side: str) -> Iterator[Batch]:
    """Algorithm 1's data: step t takes topic t mod n, and of that topic the batch number t // n.

    Each topic reads its own retain documents. Past the end of a corpus the documents start over.
    `side` ("right" or "left") is where padding goes.
    """
    for step in range(steps):
        topic, number = topics[step % len(topics)], step // len(topics)
        yield Batch(
            step,
            topic.name,
            pad(_take(topic.forget, number, batch_size), pad_id, side),
            pad(_take(topic.retain, number, batch_size), pad_id, side),
        )


def _take(documents: list[list[int]], number: int, size: int) -> list[list[int]]:
    start = number * size
    return [documents[i % len(documents)] for i in range(start, start + size)]


def pad(rows: list[list[int]], pad_id: int, side: str) -> Padded:
    """Rows of token ids as one tensor, padded to the longest."""
    assert side in ("right", "left"), side
    longest = max(map(len, rows))
    ids_BT = torch.full((len(rows), longest), pad_id, dtype=torch.long)
    mask_BT = torch.zeros((len(rows), longest), dtype=torch.bool)
    for i, row in enumerate(rows):
        at = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        ids_BT[i, at] = torch.tensor(row)
        mask_BT[i, at] = True
    return Padded(ids_BT, mask_BT)


def documents_needed(steps: int, batch_size: int, topics: int) -> int:
    """Documents that the busiest topic takes from each of its corpora."""
    return -(-steps // topics) * batch_size
