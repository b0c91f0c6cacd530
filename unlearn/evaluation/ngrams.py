"""Which forget-tokens are harmful (section 6.7): n-grams of the forget corpora by similarity to their document.

An n-gram is n words in a row. Its similarity is the cosine between the mean of its tokens' states, in context, and
the mean state of its whole document, in the base model at layer l.

States of a language model point in much the same direction, whatever they are of, and that direction decides the cosine
of raw states (0.97 on average for 16 words in SmolLM2): it finds "of the". So by default (`eval.ngrams.form: centred`)
the corpora's mean state is taken off first, n-grams that begin or end with a stop word do not count, and a list has at
most one n-gram of a document. The first token of a window is read but not counted: whatever word it is of, its state is
several times as long as others. `eval.ngrams.form: paper` does none of this.

Documents are read one at a time and only the lists are kept, whatever the corpora's size. T tokens of a window, D
hidden size, W n-grams of a document.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from unlearn.errors import UserError
from unlearn.methods.losses import at_least_float32
from unlearn.models.cutting import CutModel
from unlearn.records.names import NGRAM_SIZES
from unlearn.records.ngrams import Ngram, NgramLists, Sizes

KINDS = ("most", "least", "mean")
PUNCTUATION = ".,;:!?()[]{}\"'"  # around a word
Measured = Iterator[tuple[int, list[str], Tensor]]  # n, n-grams, their similarities [W]
Word = tuple[int, int, str]  # its first token, the token after its last, the word without outer punctuation


class Reader(Protocol):
    """What gives texts their states: the base model (`InContext`) or a sentence-embedding model (`Embedder`)."""

    def total(self, text: str) -> tuple[Tensor, int]:
        """The sum of the states of a text's counted tokens, [D], and their number."""

    def measure(self, text: str, centre_D: Tensor | None) -> Measured:
        """The similarities of a document's n-grams; of those that may be listed alone, if states are centred."""


@dataclass
class Best:
    """The `top` distinct n-grams with the highest scores so far. A repeated n-gram counts with its best score."""

    top: int
    scores: dict[str, tuple[float, float]] = field(default_factory=dict)  # n-gram -> score, similarity

    def offer(self, ngrams: Sequence[str], scores_W: Tensor, similarities_W: Tensor) -> None:
        """Add a document's n-grams. Only those above the lowest kept score are compared one by one."""
        full = len(self.scores) >= self.top
        lowest = min(score for score, _ in self.scores.values()) if full else -float("inf")
        for i in (scores_W > lowest).nonzero().flatten().tolist():
            score, name = scores_W[i].item(), ngrams[i]
            if score > self.scores.get(name, (-float("inf"), 0.0))[0]:
                self.scores[name] = (score, similarities_W[i].item())
        self.scores = dict(heapq.nlargest(self.top, self.scores.items(), key=lambda item: (item[1][0], item[0])))

    def offer_one(self, ngrams: Sequence[str], scores_W: Tensor, similarities_W: Tensor) -> None:
        """Add the best n-gram of a document alone."""
        best = int(scores_W.argmax())
        self.offer([ngrams[best]], scores_W[best : best + 1], similarities_W[best : best + 1])

    def listed(self) -> list[Ngram]:
        """Best first."""
        ordered = sorted(self.scores.items(), key=lambda item: (-item[1][0], item[0]))
        return [Ngram(name, similarity) for name, (_, similarity) in ordered]


def rank_ngrams(
    documents: Callable[[], Iterable[str]],
    measure: Callable[[str], Measured],
    *,
    top: int,
    one_of_a_document: bool = False,
) -> Sizes:
    """The most similar, least similar and middling n-grams of each size, and the mean similarity.

    Args:
        documents: gives all documents anew at each call: they are read twice, since the mean has to
            be known before what is nearest to it.
        measure: similarities of all n-grams of a document.
        one_of_a_document: a document adds at most one n-gram to a list, so that lists have no overlapping windows.
    """
    kept = {n: {kind: Best(top) for kind in KINDS} for n in NGRAM_SIZES}
    offer = Best.offer_one if one_of_a_document else Best.offer
    sums, counts = dict.fromkeys(NGRAM_SIZES, 0.0), dict.fromkeys(NGRAM_SIZES, 0)
    for document in tqdm(documents(), desc="n-grams, extremes", disable=None):
        for n, ngrams, similarities_W in _whole(measure(document)):
            if not similarities_W.isfinite().all():
                raise UserError(
                    "similarities of n-grams are not finite: the states of the model that measures them are none."
                )
            offer(kept[n]["most"], ngrams, similarities_W, similarities_W)
            offer(kept[n]["least"], ngrams, -similarities_W, similarities_W)
            sums[n] += similarities_W.double().sum().item()
            counts[n] += len(ngrams)
    means = {n: sums[n] / counts[n] if counts[n] else 0.0 for n in NGRAM_SIZES}
    for document in tqdm(documents(), desc="n-grams, around the mean", disable=None):
        for n, ngrams, similarities_W in _whole(measure(document)):
            offer(kept[n]["mean"], ngrams, -(similarities_W - means[n]).abs(), similarities_W)
    return {
        str(n): NgramLists(
            **{kind: best.listed() for kind, best in kept[n].items()}, mean_similarity=means[n], count=counts[n]
        )
        for n in NGRAM_SIZES
    }


def _whole(measured: Measured) -> Measured:
    """The n-grams of a document, together for each n."""
    parts: dict[int, tuple[list[str], list[Tensor]]] = {}
    for n, ngrams, similarities_W in measured:
        names, values = parts.setdefault(n, ([], []))
        names += ngrams
        values.append(similarities_W)
    for n, (names, values) in parts.items():
        yield n, names, torch.cat(values)


def mean_state(texts: Iterable[str], reader: Reader) -> Tensor:
    """The mean over all counted tokens of all texts, float64 [D]."""
    total_D, count = None, 0
    for text in tqdm(texts, desc="n-grams, mean state", disable=None):
        sum_D, tokens = reader.total(text)
        total_D = sum_D.double() + (0.0 if total_D is None else total_D)
        count += tokens
    if total_D is None or not count:
        raise UserError("n-grams: the corpora (data.topics) have no text of two tokens whose states could be averaged.")
    return total_D / count


@cache
def _stop_words() -> frozenset[str]:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS  # where there are n-grams only: it takes a while

    return ENGLISH_STOP_WORDS


def _starts(words: Sequence[str], n: int, *, centred: bool) -> list[int]:
    """Where the n-grams begin that count: those with a letter and, if states are centred, no stop word at their ends.

    A stop word within may be a part of a term: "denial of service".
    """
    starts = [i for i in range(len(words) - n + 1) if any(c.isalpha() for word in words[i : i + n] for c in word)]
    ends = _stop_words() if centred else frozenset()
    return [i for i in starts if not {words[i].lower(), words[i + n - 1].lower()} & ends]


@dataclass(frozen=True)
class InContext:
    """The base model's states at layer l, of documents in windows of `window` tokens. n-grams do not cross windows.

    The first `skipped` tokens of each window are read but not counted.
    """

    cut: CutModel
    tokenizer: PreTrainedTokenizerBase
    window: int
    skipped: int = 0

    def total(self, text: str) -> tuple[Tensor, int]:
        """The sum of the states of a text's counted tokens, [D], and their number."""
        return self._total(list(self._windows(text)))

    def measure(self, text: str, centre_D: Tensor | None = None) -> Measured:
        """The similarities of a document's n-grams; of those that may be listed alone, if states are centred."""
        windows = list(self._windows(text))
        total_D, count = self._total(windows)
        if not count:
            return
        middle_D = torch.zeros_like(total_D) if centre_D is None else centre_D.to(total_D)
        document_D = total_D / count - middle_D
        for sums_TD, words in windows:
            for n in NGRAM_SIZES:
                starts = _starts([word for _, _, word in words], n, centred=centre_D is not None)
                if not starts:
                    continue
                spans = [(words[i][0], words[i + n - 1][1]) for i in starts]
                first, last = torch.tensor(spans, device=sums_TD.device).T
                states_WD = (sums_TD[last] - sums_TD[first]) / (last - first)[:, None] - middle_D
                names = [" ".join(word for _, _, word in words[i : i + n]) for i in starts]
                yield n, names, cosine_similarity(states_WD, document_D[None]).cpu()

    def _total(self, windows: Sequence[tuple[Tensor, list[Word]]]) -> tuple[Tensor, int]:
        if not windows:
            return torch.zeros(self.cut.dim, device=self.cut.device), 0
        total_D = sum((sums_TD[-1] for sums_TD, _ in windows[1:]), start=windows[0][0][-1])
        return total_D, sum(len(sums_TD) - 1 - self.skipped for sums_TD, _ in windows)

    @torch.inference_mode()
    def _windows(self, text: str) -> Iterator[tuple[Tensor, list[Word]]]:
        """Of each window the sums of the states before each token and after the last, [T + 1, D], and its words."""
        encoded = self.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        for start in range(0, len(ids), self.window):
            part = torch.tensor([ids[start : start + self.window]], device=self.cut.device)
            if part.shape[1] <= self.skipped:
                continue
            h_TD = at_least_float32(self.cut.span(self.cut.prefix(part), self.cut.frozen)[0])
            h_TD[: self.skipped] = 0
            sums_TD = torch.cat([h_TD.new_zeros(1, h_TD.shape[1]), h_TD.cumsum(dim=0)])
            words = _words(text, offsets[start : start + self.window])
            yield sums_TD, [word for word in words if word[0] >= self.skipped]


def _words(text: str, offsets: Sequence[tuple[int, int]]) -> list[Word]:
    """The words that lie wholly in a window."""
    if not offsets:
        return []
    begin, end = offsets[0][0], offsets[-1][1]
    words = []
    token = 0
    for match in re.finditer(r"\S+", text[begin:end]):
        start, stop = match.start() + begin, match.end() + begin
        while token < len(offsets) and offsets[token][1] <= start:
            token += 1
        after = token
        while after < len(offsets) and offsets[after][0] < stop:
            after += 1
        word = match.group().strip(PUNCTUATION)
        if word and after > token:
            words.append((token, after, word))
        token = max(token, after - 1)
    return words


@dataclass(frozen=True)
class Embedder:
    """A sentence-embedding model: n-gram and document by themselves, each the mean of its tokens' last states.

    A document's embedding is the mean over windows of `window` words.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    window: int

    def total(self, text: str) -> tuple[Tensor, int]:
        """The sum of the states of a text's tokens, [D], and their number."""
        sums_BD, counts_B1 = self._sums(self._windows(_split(text)) or [""])
        return sums_BD.sum(dim=0), int(counts_B1.sum())

    def measure(self, text: str, centre_D: Tensor | None = None) -> Measured:
        """The similarities of a document's n-grams; of those that may be listed alone, if states are centred."""
        words = _split(text)
        if not words:
            return
        sums_BD, counts_B1 = self._sums(self._windows(words))
        middle_D = torch.zeros_like(sums_BD[0]) if centre_D is None else centre_D.to(sums_BD)
        document_D = (sums_BD / counts_B1).mean(dim=0) - middle_D
        for n in NGRAM_SIZES:
            starts = _starts(words, n, centred=centre_D is not None)
            ngrams = list(dict.fromkeys(" ".join(words[i : i + n]) for i in starts))
            for i in range(0, len(ngrams), 256):
                sums_WD, counts_W1 = self._sums(ngrams[i : i + 256])
                similarities_W = cosine_similarity(sums_WD / counts_W1 - middle_D, document_D[None])
                yield n, ngrams[i : i + 256], similarities_W.cpu()

    def _windows(self, words: Sequence[str]) -> list[str]:
        return [" ".join(words[i : i + self.window]) for i in range(0, len(words), self.window)]

    @torch.inference_mode()
    def _sums(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """The sum of the last states over each text's real tokens, float32 [B, D], and their number, [B, 1]."""
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        inputs = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(self.model.device)
        states_BTD = self.model(**inputs).last_hidden_state.float()
        mask_BT1 = inputs["attention_mask"][..., None]
        return (states_BTD * mask_BT1).sum(dim=1), mask_BT1.sum(dim=1)


def _split(text: str) -> list[str]:
    """The words of a text without outer punctuation."""
    return [word for whole in text.split() if (word := whole.strip(PUNCTUATION))]
