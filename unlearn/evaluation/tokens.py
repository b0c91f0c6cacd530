"""Which words a perturbed query gets: forget-tokens, and harmless control words like them.

A query's kind names its source: "perturbed" the forget-tokens of `eval.forget_tokens`, "control" the words of
`eval.control_tokens` or words of the retain corpora of the same length and frequency, so that "any odd word hurts" can
be told from "forget-tokens hurt"; "similarity-..." and "ngram-..." lists from `unlearn.evaluation.ngrams`.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from unlearn.data.formats import read_text
from unlearn.errors import UserError
from unlearn.storage.files import no_such_file

WORD = re.compile(r"[^\W\d_][\w-]{2,}")
CONTROLS = 5  # control words for each forget-token
FROM_CORPUS = 100  # words that stand for a topic's corpus


def read_tokens(tokens: Sequence[str] | str, key: str = "eval.forget_tokens") -> list[str]:
    """A literal list, or a UTF-8 file with one token a line. Raises UserError for one that is missing or empty."""
    if not isinstance(tokens, str):
        return list(tokens)
    file = Path(tokens)
    if not file.is_file():
        raise UserError(
            f"{key}={tokens}: {no_such_file(tokens)} Give a list, a file with one a line"
            f"{', or corpus:TOPIC' if key == 'eval.forget_tokens' else ''}."
        )
    words = [line.strip() for line in read_text(file, key).splitlines() if line.strip()]
    if not words:
        raise UserError(f"{key}={tokens}: the file is empty.")
    return words


def words(texts: Iterable[str]) -> Iterator[str]:
    """Words of three characters or more, beginning with a letter."""
    for text in texts:
        yield from WORD.findall(text)


def corpus_tokens(forget: Iterable[str], retain: Iterable[str]) -> list[str]:
    """The words of a topic's forget corpus that are most frequent there and not in its retain corpus."""
    harmless = {word.lower() for word in words(retain)}
    counts = Counter(word for word in words(forget) if word.lower() not in harmless)
    return [word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:FROM_CORPUS]]


def control_tokens(tokens: Sequence[str], forget: Iterable[str], retain: Iterable[str], seed: int = 0) -> list[str]:
    """For each forget-token, words of the retain corpora like it that no forget corpus has.

    Like it: nearest in frequency class (the binary logarithm of the count over all corpora, rounded down; words that
    do not occur are of the class of those that occur once), then nearest in length. Of equally near ones, `seed` draws.
    A token of several words gets as many.
    """
    dangerous, harmless = Counter(words(forget)), Counter(words(retain))
    excluded = {word.lower() for word in dangerous} | {t.lower() for t in tokens}
    candidates = sorted(word for word in harmless if word.lower() not in excluded)
    if not candidates:
        raise UserError("eval.queries: control queries need words in the retain corpora that no forget corpus has.")

    def frequency(word: str) -> int:
        return max(1, dangerous[word] + harmless[word]).bit_length()

    def like(word: str) -> list[str]:
        rank = frequency(word)
        drawn = random.Random(f"{seed}/{word}").sample(candidates, len(candidates))
        return sorted(drawn, key=lambda c: (abs(frequency(c) - rank), abs(len(c) - len(word))))[:CONTROLS]

    controls = []
    for token in tokens:
        controls += [" ".join(parts) for parts in zip(*map(like, token.split()), strict=False)]
    return list(dict.fromkeys(controls))
