"""Held-out text as a measure: how likely a model finds documents, as they are and behind an inserted word.

A passage is a document in two parts. The beginning ends with the first word behind the place of the insertion; of the
rest, the negative log-likelihood is measured. An inserted word goes before that place, with a full stop. So the same
tokens are counted with and without it, and the first word behind it is left out.
"""

from __future__ import annotations

import math
import random
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import fmean, stdev
from types import SimpleNamespace
from typing import Any

from unlearn.config.schema import FEWEST_WORDS, TextConfig
from unlearn.data.corpora import Reading, documents
from unlearn.errors import UserError
from unlearn.records.names import NGRAM_QUERIES, is_asked, text_role, text_task
from unlearn.records.samples import Sample

LARGEST = 700.0  # nats whose exponential a float holds
Passages = dict[str, dict[str, list["Passage"]]]  # query -> task -> passages


@dataclass(frozen=True)
class Passage:
    """A document, cut: what the model reads first, and what is measured then."""

    id: int  # number of the document in its corpus
    beginning: str
    rest: str
    plain: str = field(default="", repr=False)  # the beginning without inserted words
    inserted: str | None = field(default=None, repr=False)  # as it stands in the beginning, without the last full stop

    @property
    def request(self) -> Any:
        """The request to the scorer: the log-likelihood of `rest` after `beginning`, and the first choices there."""
        return SimpleNamespace(args=(self.beginning, self.rest), request_type="loglikelihood", keep_choices=True)


def load_passages(
    config: TextConfig,
    queries: Mapping[str, Sequence[str]],
    *,
    asked_of: Mapping[str, Sequence[str]] = {},
    seed: int = 0,
    limit: int | None = None,
    corpora: Mapping[str, Mapping[str, str | Path | Sequence[str]]] | None = None,
) -> Passages:
    """Read and cut all documents.

    Args:
        corpora: role -> name -> a corpus, or texts in memory; None: `config.corpora`.
        queries: kind of query -> words to insert; none for "default".
        asked_of: query -> the roles that it is asked of; one that is missing: all.
        limit: at most so many documents of each corpus, beside `config.documents`, after `config.skip`.

    Documents of fewer than FEWEST_WORDS words are left out. Raises UserError for a corpus that cannot be read, and for
    one without any longer document.
    """
    documents = min((n for n in (config.documents, limit) if n is not None), default=None)
    passages: Passages = {query: {} for query in queries}
    reading = Reading(config.text_column, config.errors)  # never of dialogues: words are inserted
    for role, named in (config.corpora if corpora is None else corpora).items():
        for name, corpus in named.items():
            key = f"eval.texts.corpora.{role}.{name}"
            numbered = enumerate(_texts_of(corpus, key, reading))
            kept = numbered if config.last is None else deque(numbered, maxlen=config.last)
            long_enough = ((i, text) for i, text in kept if len(text.split()) >= FEWEST_WORDS)
            texts = list(islice(long_enough, config.skip, None if documents is None else config.skip + documents))
            if not texts:
                searched = "" if config.last is None else f" among its last {config.last}"
                raise UserError(
                    f"{key} has no document of {FEWEST_WORDS} words or more{searched} after the first "
                    f"{config.skip} (eval.texts.skip)."
                )
            task = text_task(role, name)
            for query, words in queries.items():
                if is_asked(asked_of, query, text_role(role)):
                    hands = _dealt(words, len(texts), config, f"{seed}/{task}/{query}", query)
                    passages[query][task] = [
                        _cut(config, f"{seed}/{task}/{i}", i, text, words, hand)
                        for (i, text), hand in zip(texts, hands, strict=True)
                    ]
    return {query: tasks for query, tasks in passages.items() if tasks}


def _texts_of(corpus: str | Path | Sequence[str], key: str, reading: Reading) -> Iterable[str]:
    if not isinstance(corpus, (str, Path)):
        return corpus
    return (text for text, _ in documents(str(corpus), key, reading))


def _dealt(words: Sequence[str], count: int, config: TextConfig, key: str, query: str) -> list[list[str] | None]:
    """The words of each of `count` documents; None where a document draws its own, independently of the others.

    With `config.texts_per_word`, only so many words are drawn from the list that each is in at least that number of
    documents, n-grams in at least one. They are dealt in turn: no word is in more than one document more than another.
    """
    if config.texts_per_word is None or not words:
        return [None] * count
    drawn = list(dict.fromkeys(words))
    random.Random(key).shuffle(drawn)
    places = count * config.inserted
    texts_per_word = 1 if query in NGRAM_QUERIES else config.texts_per_word
    drawn = drawn[: max(config.inserted, places // texts_per_word)]
    in_turn = [drawn[place % len(drawn)] for place in range(places)]
    return [in_turn[place : place + config.inserted] for place in range(0, places, config.inserted)]


def _cut(config: TextConfig, key: str, number: int, text: str, words: Sequence[str], hand: list[str] | None) -> Passage:
    """A document as a passage, with the words of its `hand`, or with `config.inserted` of `words` if there are any."""
    rng = random.Random(key)
    spans = [match.span() for match in islice(re.finditer(r"\S+", text), config.words)]
    places: dict[str, Callable[[], int]] = {
        "start": lambda: 0,
        "quarter": lambda: len(spans) // 4,
        "random": lambda: rng.randrange(len(spans) // 2),
    }
    begin, end = spans[places[config.place]()]
    if hand is None:
        hand = [rng.choice(words) for _ in range(config.inserted)] if words else []
    inserted = "".join(f"{word}. " for word in hand)
    before, behind, rest = text[spans[0][0] : begin], text[begin:end], text[end : spans[-1][1]]
    return Passage(number, before + inserted + behind, rest, before + behind, ". ".join(hand) or None)


def figures(samples: Sequence[Sample]) -> list[tuple[str, float, float | None]]:
    """`nats` (a token, the mean over documents) with its standard error, and `perplexity`, exp(nats), without one."""
    mean, error = mean_and_error([sample.value for sample in samples if sample.value is not None])
    return [("nats", mean, error), ("perplexity", math.exp(min(mean, LARGEST)), None)]


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean over documents and its standard error."""
    return fmean(values), stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
