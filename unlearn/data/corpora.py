"""Reading and tokenising corpora: the forget and retain documents of each topic.

A corpus is a file or a folder (see `formats.py`) or a data set of the hub, written hub:REPOSITORY:CONFIGURATION:SPLIT.
Documents are taken in file order. They are texts, or dialogues (data.chat_template): lists of messages with "role" and
"content", which the tokenizer's template makes texts of.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from unlearn.data.formats import file_rows
from unlearn.errors import UserError
from unlearn.screen import say
from unlearn.storage.hashing import json_sha256

BROKEN = re.compile("[\x00\ud800-\udfff]")  # NUL and lone surrogates, which are no text
CHARACTERS = 16  # of a token, to begin with; where that gives too few tokens, the whole text is tokenised
UNKNOWN = 0.5  # share of unknown tokens from which on texts are not the tokenizer's
MARGIN = 64  # tokens that may differ because a text was cut behind them


Message = dict[str, str]  # role and content


def _said(messages: list[Message]) -> str:
    """What the messages of a dialogue say, one below the other."""
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
        column: of a file or data set that has several.
        errors: "error" raises for characters that are no text, "replace" makes them U+FFFD.
        chat: documents are dialogues.
        render: makes a text of a dialogue's messages.
    """

    column: str = "text"
    errors: str = "error"
    chat: bool = False
    render: Callable[[list[Message]], str] = _said

    @classmethod
    def of(cls, settings: ReadingSettings, tokenizer: PreTrainedTokenizerBase | None = None) -> Reading:
        """As a configuration of data says; dialogues in the tokenizer's template, without one as what they say.

        Raises UserError for a tokenizer without a template.
        """
        reading = cls(settings.text_column, settings.errors, settings.chat_template)
        if tokenizer is None or not reading.chat:
            return reading
        if not tokenizer.chat_template:
            raise UserError("data.chat_template=true, but the model's tokenizer has no chat template.")
        return cls(reading.column, reading.errors, True, partial(tokenizer.apply_chat_template, tokenize=False))


@dataclass(frozen=True)
class Corpus:
    """The first documents in file order, the place of each, how many there are in all, the SHA-256 of the corpus."""

    texts: list[str]
    places: list[str]  # "FILE:LINE" or "REPOSITORY row N", for error messages
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
            errors: "error" raises for characters that are not text, "replace" makes them U+FFFD.

        Raises:
            UserError: no text, a value that is not a string, a blank text, invalid characters, or a text of which the
                tokenizer makes no tokens. The message names the topic, the part and the text's index.
        """
        retain_max_length = retain_max_length or max_length
        forgotten = tokenised(forget, f"topic {name}, forget", tokenizer, max_length=max_length, errors=errors)
        retained = tokenised(retain, f"topic {name}, retain", tokenizer, max_length=retain_max_length, errors=errors)
        return cls(name, forgotten.rows, retained.rows, {"forget": forgotten.sha256, "retain": retained.sha256})


def read_corpus(path: str, key: str, reading: Reading = Reading(), most: int | None = None) -> Corpus:
    """Read a whole corpus and keep the first `most` documents (None: all). Raises what `documents` raises."""
    digest = hashlib.sha256()
    texts, places, size = [], [], 0
    for text, place in documents(path, key, reading, digest):
        if most is None or size < most:
            texts.append(text)
            places.append(place)
        size += 1
    return Corpus(texts, places, size, digest.hexdigest())


def corpus_sha256(path: str, key: str, reading: Reading = Reading()) -> str:
    """The SHA-256 of a corpus, read one document at a time."""
    return read_corpus(path, key, reading, 0).sha256


def documents(
    path: str, key: str, reading: Reading = Reading(), digest: hashlib._Hash | None = None
) -> Iterator[tuple[str, str]]:
    """Yield the checked documents of a corpus: (text, place).

    `key` is the configuration key that names the corpus; `digest` is updated with its content. Raises UserError, with
    file and line, for a malformed line, a missing or blank text, one with characters that are no text, and an empty or
    missing file. For a gated data set the error says how to get access.
    """
    empty = True
    for value, place in (_hub_rows if path.startswith("hub:") else file_rows)(path, key, reading.column, digest):
        empty = False
        yield _checked(value, place, key, reading), place
    if empty:
        raise UserError(f"{key}: {path} holds no document.")


def _checked(value: Any, place: str, key: str, reading: Reading) -> str:
    text = _of_dialogue(value, place, key, reading) if reading.chat else value
    if not isinstance(text, str):
        raise UserError(f'{key}: {place}: "{reading.column}" is {type(text).__name__}, not a string.')
    if not text.strip():
        raise UserError(f'{key}: {place}: "{reading.column}" is blank.')
    found = BROKEN.search(text)
    if found is None:
        return text
    if reading.errors == "replace":
        return BROKEN.sub("\ufffd", text)
    raise UserError(
        f"{key}: {place}: U+{ord(found[0]):04X} at character {found.start()} is no text. Mend the file, or have "
        f"it replaced: data.errors=replace (eval.texts.errors of held-out texts)."
    )


def _of_dialogue(value: Any, place: str, key: str, reading: Reading) -> str:
    if not isinstance(value, list) or not value or not all(_is_message(message) for message in value):
        raise UserError(
            f'{key}: {place}: "{reading.column}" is no dialogue, and data.chat_template=true. A line looks like '
            f'{{"{reading.column}": [{{"role": "user", "content": "..."}}, ...]}}.'
        )
    try:
        return reading.render([{"role": m["role"], "content": m["content"]} for m in value])
    except TemplateError as error:  # some templates want roles in a certain order
        raise UserError(f"{key}: {place}: the model's chat template refuses this dialogue: {error}") from None


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("role", "content"))


def _hub_rows(path: str, key: str, column: str, digest: hashlib._Hash | None) -> Iterator[tuple[str, str]]:
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
    if column not in rows.column_names:
        listed = ", ".join(rows.column_names)
        raise UserError(f"{key}={path}: there is no column {column!r} among {listed} (data.text_column).")
    for number, row in enumerate(rows):
        if not isinstance(row[column], str) or row[column].strip():
            if digest is not None:
                digest.update(str(row[column]).encode("utf-8", "surrogatepass") + b"\n")
            yield row[column], f"{repository} row {number}"


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
        documents: how many documents training will take from each corpus.
        on_exhausted: if a corpus has fewer, "error" raises UserError and "cycle" starts over.
        held_out: so many of the last documents of each corpus are left out.
    """
    parts: dict[str, list[list[int]]] = {}
    hashes: dict[str, str] = {}
    for part, path, length in (("forget", forget, max_length), ("retain", retain, retain_max_length)):
        key = f"data.topics.{name}.{part}"
        corpus = read_corpus(path, key, reading, documents)
        available = corpus.size - held_out
        if available <= 0 or (available < documents and on_exhausted == "error"):
            kept_back = f" beside {held_out} held-out ones (data.held_out)" if held_out else ""
            raise UserError(
                f"{key}: the corpus has {corpus.size} documents and training needs {documents}{kept_back}. Lower "
                f"train.steps or train.batch_size, or set data.on_exhausted=cycle to start over."
            )
        corpus = replace(corpus, texts=corpus.texts[:available], places=corpus.places[:available])
        parts[part] = _tokenise(corpus, tokenizer, length, key, reading)
        hashes[part] = corpus.sha256
    return Topic(name, parts["forget"], parts["retain"], hashes)


@dataclass(frozen=True)
class Texts:
    """Tokenised texts of one corpus, and its SHA-256."""

    rows: list[list[int]]
    sha256: str


def load_texts(
    path: str,
    key: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    documents: int,
    reading: Reading = Reading(),
) -> Texts:
    """Read and tokenise at most `documents` texts. Raises what `documents` raises."""
    corpus = read_corpus(path, key, reading, documents)
    return Texts(_tokenise(corpus, tokenizer, max_length, key, reading), corpus.sha256)


def tokenised(
    texts: Sequence[str], key: str, tokenizer: PreTrainedTokenizerBase, *, max_length: int, errors: str = "error"
) -> Texts:
    """Tokenise texts in memory, with the checks that corpora in files get. Raises UserError as `Topic.from_texts`."""
    if isinstance(texts, str) or not texts:
        raise UserError(f"{key}: a list of at least one text is needed, not {texts!r:.40}.")
    reading = Reading(errors=errors)
    places = [f"text {index}" for index in range(len(texts))]
    checked = [_checked(text, place, key, reading) for text, place in zip(texts, places, strict=True)]
    corpus = Corpus(checked, places, len(checked), json_sha256(checked))
    return Texts(_tokenise(corpus, tokenizer, max_length, key, reading), corpus.sha256)


def _tokenise(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, max_length: int, key: str, reading: Reading
) -> list[list[int]]:
    # A template writes BOS itself, if it wants one.
    encoded = [first_tokens(text, tokenizer, max_length, special=not reading.chat) for text in corpus.texts]
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    for ids, place in zip(encoded, corpus.places, strict=True):
        if not any(i not in special for i in ids):
            raise UserError(f"{key}: {place}: the text has no tokens of its own for this model's tokenizer.")
    warn_of_unknown(encoded, tokenizer, key)
    return encoded


def unknown_share(rows: Iterable[Sequence[int]], tokenizer: PreTrainedTokenizerBase) -> float:
    """The share of tokens for which the tokenizer has no word."""
    tokens = [token for row in rows for token in row]
    return tokens.count(tokenizer.unk_token_id) / max(1, len(tokens))


def warn_of_unknown(rows: Iterable[Sequence[int]], tokenizer: PreTrainedTokenizerBase, key: str) -> None:
    """Say if most tokens are unknown: then figures mean little."""
    share = unknown_share(rows, tokenizer)
    if share > UNKNOWN:
        say(f"{key}: the model's tokenizer does not know {share:.0%} of the tokens of these texts.")


def first_tokens(text: str, tokenizer: PreTrainedTokenizerBase, max_length: int, *, special: bool = True) -> list[int]:
    """The first `max_length` token ids of a text, without tokenising all of a long one; `special`: BOS included.

    Of a long text only a beginning, up to a space, is tokenised, if that has more tokens than are needed: what a
    tokenizer makes of the words before is the same with and without what follows many words later.
    """
    end = text.rfind(" ", 0, CHARACTERS * (max_length + MARGIN))
    long = len(text) > CHARACTERS * (max_length + MARGIN) and end > 0
    if long and tokenizer.truncation_side == "right":
        more = tokenizer(text[:end], truncation=True, max_length=max_length + MARGIN, add_special_tokens=special)[
            "input_ids"
        ]
        if len(more) == max_length + MARGIN:
            text = text[:end]
    return list(tokenizer(text, truncation=True, max_length=max_length, add_special_tokens=special)["input_ids"])
