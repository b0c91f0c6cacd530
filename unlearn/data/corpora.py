"""Corpora as token ids: the forget and retain documents of each topic, read in order, checked and tokenised.

Documents are texts or, with data.chat_template, dialogues: lists of messages with "role" and "content". The tokenizer's
chat template turns a dialogue into a text. `formats.py` lists the formats of a corpus.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from jinja2 import TemplateError

from unlearn.data.counting import too_few
from unlearn.data.formats import NOTHING, Row, read_rows
from unlearn.errors import UserError
from unlearn.screen import say
from unlearn.storage.hashing import json_sha256

if TYPE_CHECKING:  # a sweep checks its corpora before submission, without heavy imports
    from transformers import PreTrainedTokenizerBase

INVALID = re.compile("[\x00\ud800-\udfff]")  # NUL and lone surrogates, which are not text
CHARACTERS_PER_TOKEN = 16  # the part of a long text that is tokenised first; the whole text follows if it is too short
MARGIN = 64  # tokens before the cut of a text that the cut may change
UNKNOWN = 0.5  # a warning is printed if more than this share of the tokens is unknown

Message = dict[str, str]  # role and content


def _contents(messages: list[Message]) -> str:
    """The contents of a dialogue's messages, each on its own line."""
    return "\n".join(message["content"] for message in messages)


class ReadingSettings(Protocol):
    """The keys that `Reading.of` reads."""

    text_column: str
    errors: str
    chat_template: bool


@dataclass(frozen=True)
class Reading:
    """How documents are read.

    Args:
        column: the column with the document, in files and data sets with several columns.
        errors: "error" raises for invalid characters, "replace" replaces them by U+FFFD.
        chat: whether documents are dialogues.
        render: turns a dialogue's messages into a text.
    """

    column: str = "text"
    errors: str = "error"
    chat: bool = False
    render: Callable[[list[Message]], str] = _contents

    @classmethod
    def of(cls, settings: ReadingSettings, tokenizer: PreTrainedTokenizerBase | None = None) -> Reading:
        """The reading that the configuration describes. Without a tokenizer, a dialogue becomes its messages' contents.

        Raises UserError if documents are dialogues and the tokenizer has no chat template.
        """
        reading = cls(settings.text_column, settings.errors, settings.chat_template)
        if tokenizer is None or not reading.chat:
            return reading
        if not tokenizer.chat_template:
            raise UserError("data.chat_template=true, but the model's tokenizer has no chat template.")
        return cls(reading.column, reading.errors, True, partial(tokenizer.apply_chat_template, tokenize=False))


@dataclass(frozen=True)
class Texts:
    """The tokenised documents of one corpus: the first ones, in order.

    Args:
        rows: token ids of each document.
        size: the number of documents of the whole corpus.
        sha256: of the whole corpus.
    """

    rows: list[list[int]]
    size: int
    sha256: str


@dataclass(frozen=True)
class Topic:
    """One topic's tokenised documents: as many as training needs, or all if there are fewer."""

    name: str
    forget: list[list[int]]
    retain: list[list[int]]
    sha256: dict[str, str]  # {"forget": ..., "retain": ...}

    @classmethod
    def from_texts(
        cls,
        name: str,
        forget: Sequence[str],
        retain: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int = 512,
        retain_max_length: int | None = None,
        errors: str = "error",
    ) -> Topic:
        """A topic of texts in memory, with the checks that corpora in files get.

        Args:
            name: appears in logs and error messages.
            forget: the texts to forget, in the order in which steps take them.
            retain: the texts to retain.
            max_length: longer forget texts are cut to this many tokens.
            retain_max_length: the same of retain texts; None: `max_length`.
            errors: "error" raises for characters that are not text, "replace" replaces them by U+FFFD.

        Raises:
            UserError: there is no text, a value is not a string, a text is blank, has invalid characters, or gives no
                tokens. The message names the topic, the part and the text's index.
        """
        retain_max_length = retain_max_length or max_length
        forgotten = tokenised(forget, f"topic {name}, forget", tokenizer, max_length=max_length, errors=errors)
        retained = tokenised(retain, f"topic {name}, retain", tokenizer, max_length=retain_max_length, errors=errors)
        return cls(name, forgotten.rows, retained.rows, {"forget": forgotten.sha256, "retain": retained.sha256})


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
    held_out: int = 0,
    reading: Reading = Reading(),
) -> Topic:
    """Read and tokenise one topic's corpora.

    Args:
        documents: the number of documents that training takes from each corpus.
        on_exhausted: if a corpus has fewer, "error" raises UserError and "cycle" starts over.
        held_out: the number of documents at the end of each corpus that are left out.
    """

    def loaded(part: str, path: str, length: int) -> Texts:
        key = f"data.topics.{name}.{part}"
        texts = load_texts(path, key, tokenizer, max_length=length, documents=documents, reading=reading)
        available = texts.size - held_out
        if available <= 0 or (available < documents and on_exhausted == "error"):
            count = f"the corpus has {texts.size} documents"
            raise UserError(too_few(key, count, texts.size, documents, held_out))
        return replace(texts, rows=texts.rows[:available])

    forgotten, retained = loaded("forget", forget, max_length), loaded("retain", retain, retain_max_length)
    return Topic(name, forgotten.rows, retained.rows, {"forget": forgotten.sha256, "retain": retained.sha256})


def load_texts(
    path: str,
    key: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    documents: int,
    reading: Reading = Reading(),
) -> Texts:
    """Check a whole corpus and tokenise its first `documents` documents. Raises the errors of `documents()`."""
    digest = hashlib.sha256()
    first, size = [], 0
    for document in _documents(path, key, reading, digest):
        if size < documents:
            first.append(document)
        size += 1
    return Texts(_tokenise(first, tokenizer, max_length, key, reading), size, digest.hexdigest())


def documents(path: str, key: str, reading: Reading = Reading()) -> Iterator[tuple[str, str]]:
    """Yield the checked documents of a corpus, with the place of each. The corpus is read as far as it is consumed.

    `key` is the configuration key that names the corpus. Raises UserError, with file and line, for a malformed line, a
    missing or blank text, invalid characters, and an empty or missing file. For a gated data set the error says how to
    get access.
    """
    return _documents(path, key, reading, hashlib.sha256())


def _documents(path: str, key: str, reading: Reading, digest: hashlib._Hash) -> Iterator[tuple[str, str]]:
    empty = True
    for row in read_rows(path, key, reading.column):
        digest.update(row.content)
        if row.value is not NOTHING:
            empty = False
            yield _checked(row, key, reading), row.place
    if empty:
        raise UserError(f"{key}: {path} has no documents.")


def _checked(row: Row, key: str, reading: Reading) -> str:
    where = f"{key}: {row.place}"
    text = _of_dialogue(row.value, where, reading) if reading.chat else row.value
    if not isinstance(text, str):
        raise UserError(f'{where}: "{reading.column}" is {type(text).__name__}, not a string.')
    if not text.strip():
        raise UserError(f'{where}: "{reading.column}" is blank.')
    invalid = INVALID.search(text)
    if invalid is None:
        return text
    if reading.errors == "replace":
        return INVALID.sub("\ufffd", text)
    raise UserError(
        f"{where}: invalid character U+{ord(invalid[0]):04X} at offset {invalid.start()}. Fix the text, or set "
        "data.errors=replace (eval.texts.errors=replace for held-out texts)."
    )


def _of_dialogue(value: Any, where: str, reading: Reading) -> str:
    if not isinstance(value, list) or not value or not all(_is_message(message) for message in value):
        raise UserError(
            f'{where}: "{reading.column}" is not a dialogue, and data.chat_template=true. Write '
            f'{{"{reading.column}": [{{"role": "user", "content": "..."}}, ...]}}.'
        )
    try:
        return reading.render([{"role": m["role"], "content": m["content"]} for m in value])
    except TemplateError as error:  # some templates need roles in a certain order
        raise UserError(f"{where}: the model's chat template does not accept this dialogue: {error}") from None


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("role", "content"))


def tokenised(
    texts: Sequence[str], key: str, tokenizer: PreTrainedTokenizerBase, *, max_length: int, errors: str = "error"
) -> Texts:
    """Tokenise texts in memory, with the checks that corpora in files get. Raises UserError as `Topic.from_texts`."""
    if isinstance(texts, str) or not texts:
        raise UserError(f"{key}: a list of at least one text is needed, not {texts!r:.40}.")
    reading = Reading(errors=errors)
    rows = [Row(text, f"text {index}", b"") for index, text in enumerate(texts)]
    checked = [(_checked(row, key, reading), row.place) for row in rows]
    sha256 = json_sha256([text for text, _ in checked])
    return Texts(_tokenise(checked, tokenizer, max_length, key, reading), len(texts), sha256)


def _tokenise(
    texts: Iterable[tuple[str, str]], tokenizer: PreTrainedTokenizerBase, max_length: int, key: str, reading: Reading
) -> list[list[int]]:
    """Token ids of texts, each given with its place. Raises UserError for a text that gives only special tokens."""
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    rows = []
    for text, place in texts:
        # A chat template writes BOS itself if the model needs one.
        ids = first_tokens(text, tokenizer, max_length, special=not reading.chat)
        if special.issuperset(ids):
            raise UserError(f"{key}: {place}: this text gives no tokens with the model's tokenizer.")
        rows.append(ids)
    warn_of_unknown(rows, tokenizer, key)
    return rows


def check_rows(rows: Mapping[str, Sequence[Sequence[int]]], vocabulary: int, *, first_counted: bool) -> None:
    """Check the token ids of texts, by the name of their corpus, for a model with `vocabulary` embeddings.

    Raises UserError for an id beyond the embeddings, and if all texts of a corpus have one token and the losses leave
    out first tokens (not `first_counted`). If only some have, their share is printed.
    """
    for key, texts in rows.items():
        largest = max(max(ids) for ids in texts)
        if min(min(ids) for ids in texts) < 0:
            raise UserError(f"{key}: a token id is below 0.")
        if largest >= vocabulary:
            raise UserError(
                f"{key}: token id {largest}, but the model has embeddings for ids below {vocabulary} only. Its "
                "tokenizer is another model's, or has tokens that were added without resizing the embeddings."
            )
        short = 0 if first_counted else sum(len(ids) == 1 for ids in texts)
        if short == len(texts):
            raise UserError(f"{key}: each text has one token, and the loss leaves out first tokens. Use longer texts.")
        if short:
            say(f"{key}: {short / len(texts):.1%} of the texts have one token, which the loss leaves out.")


def unknown_share(rows: Iterable[Sequence[int]], tokenizer: PreTrainedTokenizerBase) -> float:
    """The share of unknown tokens."""
    tokens = [token for row in rows for token in row]
    return tokens.count(tokenizer.unk_token_id) / max(1, len(tokens))


def warn_of_unknown(rows: Iterable[Sequence[int]], tokenizer: PreTrainedTokenizerBase, key: str) -> None:
    """Print a warning if most tokens are unknown: results then mean little."""
    share = unknown_share(rows, tokenizer)
    if share > UNKNOWN:
        say(f"{key}: {share:.0%} of the tokens are unknown to the model's tokenizer.")


def first_tokens(text: str, tokenizer: PreTrainedTokenizerBase, max_length: int, *, special: bool = True) -> list[int]:
    """The first `max_length` token ids of a text, with BOS if `special` is set.

    A long text is tokenised only up to a space some way behind these tokens. Later words do not change them.
    """
    enough = CHARACTERS_PER_TOKEN * (max_length + MARGIN)
    end = text.rfind(" ", 0, enough)
    if len(text) > enough and end > 0 and tokenizer.truncation_side == "right":
        beginning = text[:end]
        tokens = tokenizer(beginning, truncation=True, max_length=max_length + MARGIN, add_special_tokens=special)
        if len(tokens["input_ids"]) == max_length + MARGIN:
            text = beginning
    return list(tokenizer(text, truncation=True, max_length=max_length, add_special_tokens=special)["input_ids"])
