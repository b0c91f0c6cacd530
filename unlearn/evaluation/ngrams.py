"""Which forget-tokens are harmful (section 6.7): n-grams of the forget corpora by similarity to their document.

An n-gram is n words in a row. Its similarity is the cosine between the mean of its tokens' states, in context, and
the mean state of its whole document, in the base model at layer l. Documents are read one at a time and only the
lists are kept, whatever the corpora's size. T tokens of a window, D hidden size, W n-grams of a window.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from unlearn.errors import UserError
from unlearn.methods.losses import at_least_float32
from unlearn.models.cutting import CutModel
from unlearn.records.names import NGRAM_SIZES

KINDS = ("most", "least", "mean")
Measured = Iterator[tuple[int, list[str], Tensor]]  # n, n-grams, their similarities [W]


@dataclass
class Best:
    """The `top` distinct n-grams with the highest scores so far. A repeated n-gram counts with its best score."""

    top: int
    scores: dict[str, tuple[float, float]] = field(default_factory=dict)  # n-gram -> score, similarity

    def offer(self, ngrams: Sequence[str], scores_W: Tensor, similarities_W: Tensor) -> None:
        """Add a window's n-grams. Only those above the lowest kept score are compared one by one."""
        full = len(self.scores) >= self.top
        lowest = min(score for score, _ in self.scores.values()) if full else -float("inf")
        for i in (scores_W > lowest).nonzero().flatten().tolist():
            score, name = scores_W[i].item(), ngrams[i]
            if score > self.scores.get(name, (-float("inf"), 0.0))[0]:
                self.scores[name] = (score, similarities_W[i].item())
        self.scores = dict(heapq.nlargest(self.top, self.scores.items(), key=lambda item: (item[1][0], item[0])))

    def listed(self) -> list[dict[str, Any]]:
        """Best first: {"ngram", "similarity"}."""
        ordered = sorted(self.scores.items(), key=lambda item: (-item[1][0], item[0]))
        return [{"ngram": name, "similarity": similarity} for name, (_, similarity) in ordered]


def rank_ngrams(
    documents: Callable[[], Iterable[str]], measure: Callable[[str], Measured], *, top: int, total: int | None = None
) -> dict[str, dict[str, Any]]:
    """The most similar, least similar and middling n-grams of each size, and the mean similarity.

    Args:
        documents: gives all documents anew at each call: they are read twice, since the mean has to
            be known before what is nearest to it.
        measure: similarities of all n-grams of a document (`in_context`, `embedded`).
        total: number of documents, for the progress bar.

    Returns:
        {n: {"most": [...], "least": [...], "mean": [...], "mean_similarity": float, "count": int}}
    """
    kept = {n: {kind: Best(top) for kind in KINDS} for n in NGRAM_SIZES}
    sums, counts = dict.fromkeys(NGRAM_SIZES, 0.0), dict.fromkeys(NGRAM_SIZES, 0)
    for document in tqdm(documents(), total=total, desc="n-grams, extremes", disable=None):
        for n, ngrams, similarities_W in measure(document):
            if not similarities_W.isfinite().all():
                raise UserError(
                    "similarities of n-grams are not finite: the states of the model that measures them are none."
                )
            kept[n]["most"].offer(ngrams, similarities_W, similarities_W)
            kept[n]["least"].offer(ngrams, -similarities_W, similarities_W)
            sums[n] += similarities_W.double().sum().item()
            counts[n] += len(ngrams)
    means = {n: sums[n] / counts[n] if counts[n] else 0.0 for n in NGRAM_SIZES}
    for document in tqdm(documents(), total=total, desc="n-grams, around the mean", disable=None):
        for n, ngrams, similarities_W in measure(document):
            kept[n]["mean"].offer(ngrams, -(similarities_W - means[n]).abs(), similarities_W)
    return {
        str(n): {kind: best.listed() for kind, best in kept[n].items()}
        | {"mean_similarity": means[n], "count": counts[n]}
        for n in NGRAM_SIZES
    }


@torch.inference_mode()
def in_context(text: str, cut: CutModel, tokenizer: PreTrainedTokenizerBase, window: int) -> Measured:
    """Similarities from the base model's states at layer l, the document in windows of `window` tokens.

    n-grams do not cross windows. Those without a letter are left out.
    """
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    pieces, total_D, count = [], None, 0
    for start in range(0, len(ids), window):
        part = ids[start : start + window]
        h_TD = at_least_float32(cut.span(cut.prefix(torch.tensor([part], device=cut.device)), cut.frozen)[0])
        sums_TD = torch.cat([h_TD.new_zeros(1, h_TD.shape[1]), h_TD.cumsum(dim=0)])
        pieces.append((sums_TD, _words(text, offsets[start : start + window])))
        total_D = sums_TD[-1] if total_D is None else total_D + sums_TD[-1]
        count += len(part)
    for sums_TD, words in pieces:
        for n in NGRAM_SIZES:
            spans = [(words[i][0], words[i + n - 1][1]) for i in range(len(words) - n + 1)]
            names = [" ".join(w[2] for w in words[i : i + n]) for i in range(len(words) - n + 1)]
            chosen = [i for i, name in enumerate(names) if any(c.isalpha() for c in name)]
            if not chosen:
                continue
            first, last = torch.tensor([spans[i] for i in chosen], device=sums_TD.device).T
            states_WD = (sums_TD[last] - sums_TD[first]) / (last - first)[:, None]
            assert total_D is not None
            yield n, [names[i] for i in chosen], cosine_similarity(states_WD, total_D[None] / count).cpu()


def _words(text: str, offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int, str]]:
    """Words that lie wholly in a window: first token, token after the last, the word without outer punctuation."""
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
        word = match.group().strip(".,;:!?()[]{}\"'")
        if word and after > token:
            words.append((token, after, word))
        token = max(token, after - 1)
    return words


@torch.inference_mode()
def embedded(text: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, window: int) -> Measured:
    """Similarities from a sentence-embedding model: n-gram and document by themselves, means of their last states.

    The document's embedding is the mean over windows of `window` words.
    """
    words = [w for w in (word.strip(".,;:!?()[]{}\"'") for word in text.split()) if w]
    if not words:
        return
    windows = [" ".join(words[i : i + window]) for i in range(0, len(words), window)]
    document_D = _embed(windows, model, tokenizer).mean(dim=0)
    for n in NGRAM_SIZES:
        ngrams = [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]
        ngrams = [name for name in dict.fromkeys(ngrams) if any(c.isalpha() for c in name)]
        for i in range(0, len(ngrams), 256):
            batch = ngrams[i : i + 256]
            yield n, batch, cosine_similarity(_embed(batch, model, tokenizer), document_D[None]).cpu()


def _embed(texts: list[str], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Mean of the last states over real tokens: float32 [len(texts), D]."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(model.device)
    states_BTD = model(**inputs).last_hidden_state.float()
    mask_BT = inputs["attention_mask"][..., None]
    return (states_BTD * mask_BT).sum(dim=1) / mask_BT.sum(dim=1)
