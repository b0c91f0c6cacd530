"""Reading and tokenising corpora: the forget and retain documents of each topic.

A corpus is a file (.jsonl with {"text": ...} on each line, or .txt with a document on each line) or a data set of the
hub, written hub:REPOSITORY:CONFIGURATION:SPLIT. Documents are taken in file order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from unlearn.errors import UserError


@dataclass(frozen=True)
class Corpus:
    """Documents in file order, the place of each, and the SHA-256 of the corpus."""

    texts: list[str]
    places: list[str]  # "FILE:LINE" or "REPOSITORY row N", for error messages
    sha256: str


@dataclass(frozen=True)
class Topic:
    """One topic's tokenised documents: as many as training needs, or all if there are fewer."""

    name: str
    forget: list[list[int]]
    retain: list[list[int]]
    sha256: dict[str, str]  # {"forget": ..., "retain": ...}


def read_corpus(path: str, key: str) -> Corpus:
    """Read a whole corpus. Raises what `documents` raises."""
    digest = hashlib.sha256()
    found = list(documents(path, key, digest))
    return Corpus([text for text, _ in found], [place for _, place in found], digest.hexdigest())


def corpus_sha256(path: str, key: str) -> str:
    """The SHA-256 of a corpus, read one document at a time."""
    digest = hashlib.sha256()
    for _ in documents(path, key, digest):
        pass
    return digest.hexdigest()


def documents(path: str, key: str, digest: hashlib._Hash | None = None) -> Iterator[tuple[str, str]]:
    """Yield the checked documents of a corpus: (text, place).

    `key` is the configuration key that names the corpus; `digest` is updated with its content. Raises UserError, with
    file and line, for a malformed line, a missing or blank `text`, and an empty or missing file. For a gated data set
    the error says how to get access.
    """
    empty = True
    for text, place in (_hub_documents if path.startswith("hub:") else _file_documents)(path, key, digest):
        empty = False
        yield text, place
    if empty:
        raise UserError(f"{key}: {path} holds no document.")


def _file_documents(path: str, key: str, digest: hashlib._Hash | None) -> Iterator[tuple[str, str]]:
    """One document on each line. In plain text, blank lines are skipped, as in Wikitext-2 (raw)."""
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{key}={path}: there is no such file.")
    structured = file.suffix in (".jsonl", ".json")
    with file.open("rb") as lines:
        for number, raw in enumerate(lines, start=1):
            if digest is not None:
                digest.update(raw)
            place = f"{file}:{number}"
            try:
                line = raw.decode("utf-8").removesuffix("\n")
            except UnicodeDecodeError as error:
                raise UserError(f"{key}: {place}: not UTF-8 text ({error.reason}).") from None
            if line.strip():
                yield _jsonl_text(line, place, key) if structured else line, place
            elif structured and raw.endswith(b"\n"):
                raise UserError(f"{key}: {place}: the line is blank.")


def _jsonl_text(line: str, place: str, key: str) -> str:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{key}: {place}: not valid JSON ({error.msg}, column {error.colno}).") from None
    if not isinstance(row, dict) or "text" not in row:
        raise UserError(f'{key}: {place}: there is no "text". A line looks like {{"text": "..."}}.')
    text = row["text"]
    if not isinstance(text, str):
        raise UserError(f'{key}: {place}: "text" is {type(text).__name__}, not a string.')
    if not text.strip():
        raise UserError(f'{key}: {place}: "text" is blank.')
    return text


def _hub_documents(path: str, key: str, digest: hashlib._Hash | None) -> Iterator[tuple[str, str]]:
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
    for number, row in enumerate(rows):
        if row["text"].strip():
            if digest is not None:
                digest.update(row["text"].encode() + b"\n")
            yield row["text"], f"{repository} row {number}"


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


@dataclass(frozen=True)
class Texts:
    """Tokenised texts of one corpus, and its SHA-256."""

    rows: list[list[int]]
    sha256: str


def load_texts(path: str, key: str, tokenizer: PreTrainedTokenizerBase, *, max_length: int, documents: int) -> Texts:
    """Read and tokenise at most `documents` texts. Raises what `documents` raises."""
    corpus = read_corpus(path, key)
    return Texts(_tokenise(corpus, tokenizer, max_length, documents, key), corpus.sha256)


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
