"""What inserted words are like, by the base model: number of tokens, frequency in the forget texts, similarity to them.

T tokens of a text, D hidden size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from unlearn.data.corpora import Topic
from unlearn.evaluation.texts import Passage
from unlearn.evaluation.tokens import occurrences, token_count
from unlearn.methods.losses import at_least_float32
from unlearn.models.cutting import CutModel
from unlearn.records.terms import TermProperties

ROWS = 200  # texts of a corpus whose states are averaged


def term_properties(
    cut: CutModel, tokenizer: PreTrainedTokenizerBase, passages: Iterable[Passage], topics: Sequence[Topic]
) -> dict[str, TermProperties]:
    """The properties of each word that is inserted into these passages, with `topics` as training reads them."""
    by_term: dict[str, list[Passage]] = {}
    for passage in passages:
        if passage.inserted is not None:
            by_term.setdefault(passage.inserted, []).append(passage)
    counts: Counter[str] = Counter()
    for topic in topics:
        for text in tokenizer.batch_decode(topic.forget, skip_special_tokens=True):
            counts.update(occurrences(text, by_term))
    states = {term: _state_of(cut, tokenizer, own) for term, own in tqdm(by_term.items(), "words", disable=None)}
    similar = _similarities(states, *_corpus_means(cut, topics))
    return {term: TermProperties(token_count(tokenizer, term), counts[term], similar[term]) for term in by_term}


def _similarities(states: Mapping[str, Tensor], forgotten: Sequence[Tensor], mean_D: Tensor) -> dict[str, float]:
    """The cosine of each state and the nearest of the forgotten ones, each less the mean of all corpora."""
    return {
        term: max(cosine_similarity(state_D - mean_D, f_D - mean_D, dim=0).item() for f_D in forgotten)
        for term, state_D in states.items()
    }


def _corpus_means(cut: CutModel, topics: Sequence[Topic]) -> tuple[list[Tensor], Tensor]:
    """The mean state of each topic's forget texts, and the mean over all corpora, which count alike."""
    forgotten = [_mean_state(cut, topic.forget) for topic in topics]
    retained = {topic.sha256["retain"]: topic.retain for topic in topics}  # topics may share a corpus
    means = [*forgotten, *(_mean_state(cut, rows) for rows in retained.values())]
    return forgotten, torch.stack(means).mean(dim=0)


def _mean_state(cut: CutModel, rows: Sequence[Sequence[int]]) -> Tensor:
    """The mean state of a corpus' tokens but each text's first, whose state is like no other's: float32 [D]."""
    total_D, count = torch.zeros(cut.dim, device=cut.device), 0
    for row in tqdm(rows[:ROWS], "states of the corpora", disable=None):
        if len(row) > 1:
            total_D += _states(cut, row)[1:].sum(dim=0)
            count += len(row) - 1
    return total_D / max(1, count)


def _state_of(cut: CutModel, tokenizer: PreTrainedTokenizerBase, passages: Sequence[Passage]) -> Tensor:
    """The mean state of a word's tokens over the passages that it is inserted into: float32 [D]."""
    states = []
    for passage in passages:
        assert passage.inserted is not None
        begin = passage.beginning.rfind(passage.inserted)
        end = begin + len(passage.inserted)
        encoded = tokenizer(passage.beginning, return_offsets_mapping=True)
        own = [i for i, (a, b) in enumerate(encoded["offset_mapping"]) if a < end and b > begin and b > a]
        states.append(_states(cut, encoded["input_ids"])[own].mean(dim=0))
    return torch.stack(states).mean(dim=0)


@torch.inference_mode()
def _states(cut: CutModel, ids: Sequence[int]) -> Tensor:
    """The base model's states at layer l: float32 [T, D]."""
    return at_least_float32(cut.span(cut.prefix(torch.tensor([list(ids)], device=cut.device)), cut.frozen)[0])
