"""Which words a perturbed query gets: forget-tokens, and harmless control words like them.

A query's kind names its source: "perturbed" the forget-tokens of `eval.forget_tokens`, "control" the words of
`eval.control_tokens` or terms of the retain corpora of the same number of tokens and frequency, so that "any odd word
hurts" can be told from "forget-tokens hurt"; "similarity-..." and "ngram-..." lists from `unlearn.evaluation.ngrams`.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from unlearn.data.formats import read_text
from unlearn.errors import UserError
from unlearn.storage.files import no_such_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WORD = re.compile(r"[^\W\d_][\w-]{2,}")
CONTROLS = 5  # control terms for each forget-token
FROM_CLASS = 1000  # candidates of a class of frequency
FROM_CORPUS = 100  # words that stand for a topic's corpus
Length = Callable[[str], int]  # of a term, such as its number of tokens


def read_tokens(tokens: Sequence[str] | str, key: str = "eval.forget_tokens") -> list[str]:
    """A literal list, or a UTF-8 file with one token a line, or all .txt files of a folder, sorted by their names.

    Raises UserError for a file that is missing or empty.
    """
    if not isinstance(tokens, str):
        return list(tokens)
    place = Path(tokens)
    files = sorted(place.glob("*.txt")) if place.is_dir() else [place]
    if not files:
        raise UserError(f"{key}={tokens}: the folder has no file that ends in .txt.")
    if not files[0].is_file():
        raise UserError(
            f"{key}={tokens}: {no_such_file(tokens)} Give a list, a file with one a line, a folder of such files"
            f"{', or corpus:TOPIC' if key == 'eval.forget_tokens' else ''}."
        )
    words = [line.strip() for file in files for line in read_text(file, key).splitlines() if line.strip()]
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


def control_tokens(
    tokens: Sequence[str], forget: Iterable[str], retain: Iterable[str], seed: int = 0, length: Length = len
) -> list[str]:
    """For each forget-token, terms of the retain corpora like it, none of whose words any forget corpus has.

    They have as many words as it, in a row. Like it: nearest in `length` and in class of frequency, the two distances
    added. The class is the binary logarithm, rounded down, of the count in the forget corpora, or for a control term in
    the retain corpora; what does not occur is of the class of what occurs once. Of equally near ones, `seed` draws. If
    the retain corpora have no such rows of words, single words that are like the token's own are put in a row.
    """
    excluded = {word.lower() for token in tokens for word in words([token])}
    seen = Counter[str]()
    for text in forget:
        excluded |= {word.lower() for word in words([text])}
        seen.update(occurrences(text, [part for token in tokens for part in {token, *token.split()}]))
    sizes = {1, *(len(token.split()) for token in tokens)}
    harmless = _terms(retain, sizes, excluded)
    if not harmless[1]:
        raise UserError("eval.queries: control queries need words in the retain corpora that no forget corpus has.")
    pools = {size: _pool(counts, seed, length) for size, counts in harmless.items() if counts}

    def like(token: str, size: int) -> list[str]:
        rank, longest = max(1, seen[token]).bit_length(), length(token)
        drawn = random.Random(f"{seed}/{token}").sample(pools[size], len(pools[size]))
        return [c.term for c in sorted(drawn, key=lambda c: abs(c.rank - rank) + abs(c.length - longest))[:CONTROLS]]

    controls = []
    for token in tokens:
        parts = [token] if len(token.split()) in pools else token.split()
        likes = [like(part, len(part.split())) for part in parts]
        controls += [" ".join(row) for row in zip(*likes, strict=False)]
    return list(dict.fromkeys(controls))


class _Candidate(NamedTuple):
    term: str
    rank: int  # class of frequency
    length: int


def _terms(texts: Iterable[str], sizes: Iterable[int], excluded: Collection[str]) -> dict[int, Counter[str]]:
    """How often rows of so many words occur, none of which is excluded; only spaces are between them."""
    counts: dict[int, Counter[str]] = {size: Counter() for size in sizes}
    for text in texts:
        row: list[str] = []
        end = -1
        for match in WORD.finditer(text):
            if match[0].lower() in excluded:
                row = []
                continue
            row = [*row, match[0]] if text[end : match.start()] == " " else [match[0]]
            end = match.end()
            for size, of_size in counts.items():
                if len(row) >= size:
                    of_size[" ".join(row[-size:])] += 1
    return counts


def _pool(counts: Counter[str], seed: int, length: Length) -> list[_Candidate]:
    """Terms with their classes of frequency, at most FROM_CLASS of each class, drawn by the seed."""
    classes: dict[int, list[str]] = {}
    for term in sorted(counts):
        classes.setdefault(counts[term].bit_length(), []).append(term)
    draw = random.Random(f"{seed}/controls")
    few = {rank: draw.sample(of, min(FROM_CLASS, len(of))) for rank, of in classes.items()}
    return [_Candidate(term, rank, length(term)) for rank, of in few.items() for term in of]


def token_count(tokenizer: PreTrainedTokenizerBase, term: str) -> int:
    """The number of a term's tokens in the middle of a text."""
    return len(tokenizer(f" {term}", add_special_tokens=False)["input_ids"])


def occurrences(text: str, terms: Iterable[str]) -> dict[str, int]:
    """How often each term begins where a word begins, in small or capital letters: plurals count, too."""
    small = text.lower()
    found = (term for term in terms if term.lower() in small)
    return {term: len(re.findall(rf"(?<!\w){re.escape(term.lower())}", small)) for term in found}
