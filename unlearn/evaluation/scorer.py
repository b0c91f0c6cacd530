"""lm-eval's Hugging Face model class, with the same log-likelihoods computed faster.

- What several prompts share at their beginning is computed once (`unlearn.evaluation.tree`).
- The head runs at the scored positions only.
- A batch holds rows of similar length, and is bounded by tokens, not by rows.
- Prompts are tokenised in one call.
- Models that differ in a few matrices are asked together: what runs before these runs once for all.

docs/benchmarks.md says what each of these gains. How prompts are cut and scored is inherited.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from tqdm import tqdm
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerBase

from unlearn.data.batches import padding_id
from unlearn.evaluation.forward import read_logits, takes_trees
from unlearn.evaluation.journal import NO_JOURNALS, Journals, journaled
from unlearn.evaluation.rows import LARGEST_TREE, Request, Row, by_length, make_rows, plan_of
from unlearn.models.architectures import input_device
from unlearn.models.group import ModelGroup
from unlearn.models.memory import in_batches
from unlearn.storage.hashing import json_sha256

GENERATION_LENGTH = 512  # tokens assumed for a row in tasks that generate text, which lm-eval batches itself
Answer = tuple[float, bool]  # log-likelihood of a continuation, and whether greedy decoding gives it


class Scored(NamedTuple):
    """What the model said to one request. `choices` are its own first choices, where they are kept."""

    loglikelihood: float
    is_greedy: bool
    choices: list[int]


def _padding_within(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> PreTrainedTokenizerBase:
    """The tokenizer, with another token for padding if the model has no embedding for its own."""
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id < vocabulary:
        return tokenizer
    other = copy.deepcopy(tokenizer)
    other.pad_token = tokenizer.convert_ids_to_tokens(padding_id(tokenizer, vocabulary))
    return other


class _Watch(LogitsProcessor):
    """Notes whether logits of a text that is generated are not finite. What follows is then drawn from equal logits."""

    def __init__(self) -> None:
        self.all_finite = True

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        broken_B = ~scores.max(dim=-1).values.isfinite()  # single ones may be -inf: tokens that are not allowed
        self.all_finite = self.all_finite and not bool(broken_B.any())
        return scores.masked_fill(broken_B[:, None], 0.0)


class Scorer(HFLM):
    """The language model that lm-eval asks, for each member of a group of models; see `member`.

    Args:
        tokens_per_batch: the most tokens of a forward pass, padding included. A single longer row still runs.
        journals: one for each member. Batches in its journal are not computed again.
    """

    def __init__(
        self,
        group: ModelGroup,
        tokenizer: PreTrainedTokenizerBase,
        tokens_per_batch: int,
        journals: Sequence[Journals] | None = None,
    ) -> None:
        rows = max(1, tokens_per_batch // GENERATION_LENGTH)
        tokenizer = _padding_within(tokenizer, len(group.model.get_input_embeddings().weight))
        super().__init__(pretrained=group.model, tokenizer=tokenizer, batch_size=rows, backend="causal")
        self._device = input_device(group.model)  # lm-eval takes that of any part
        self.group = group
        self.tokens_per_batch = tokens_per_batch
        self.truncated: set[tuple[str, str]] = set()  # requests longer than the model's context, cut on the left
        self.shares_prefixes = takes_trees(group.model)
        self._member = 0
        self._not_finite: list[set[str]] = [set() for _ in range(len(group))]
        self._watch = _Watch()
        self._answers: list[dict[tuple[str, str], Answer]] = [{} for _ in range(len(group))]
        self._choices: list[dict[tuple[str, str], list[int]]] = [{} for _ in range(len(group))]
        self._keep_choices: set[tuple[str, str]] = set()
        self._tokens: dict[str, list[int]] = {}
        self._label = ""
        self._journals = journals or [NO_JOURNALS] * len(group)

    @contextmanager
    def member(self, number: int) -> Iterator[None]:
        """Inside the block, this member of the group answers."""
        self._member, before = number, self._member
        try:
            with self.group.use(number):
                yield
        finally:
            self._member = before

    @property
    def not_finite(self) -> set[str]:
        """The prompts after which the member in use generated a text from logits that are not finite."""
        return self._not_finite[self._member]

    def prepare(self, requests: Sequence[Any], label: str = "") -> None:
        """Compute all log-likelihoods of all members, so that tasks and queries can share beginnings."""
        pairs = {r.args for r in requests if r.request_type == "loglikelihood"} - self._answers[0].keys()
        if not pairs:
            return
        self._keep_choices |= {r.args for r in requests if getattr(r, "keep_choices", False)}
        ordered = sorted(pairs)  # the order of a set differs from run to run
        self._label = label
        self._tokenise(ordered)
        super().loglikelihood([SimpleNamespace(args=pair) for pair in ordered], disable_tqdm=True)
        self._tokens.clear()

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[Answer]:
        """An answer for each request, by the member in use."""
        self.prepare(requests)
        return [self._answers[self._member][request.args] for request in requests]

    def choices(self, request: Any) -> list[int]:
        """The first choice of the member in use for each counted token of a request that keeps them."""
        return self._choices[self._member][request.args]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """A text for each request, by the member in use: batches of prompts of similar length, kept in its journal."""
        arguments = [request.args for request in requests]
        order = sorted(range(len(requests)), key=lambda i: -len(arguments[i][0]))
        size = int(self.batch_size)
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        plan = json_sha256([size, arguments])
        journals = self._journals[self._member]
        name = f"{self._label or 'model'}-generated-{plan[:10]}"
        texts: dict[int, str] = {}

        def generate(number: int, _members: list[int]) -> list[list[tuple[str, bool]]]:
            return [self._generated([requests[i] for i in batches[number]])]

        for number, [answers] in journaled([journals], name, plan, len(batches), generate):
            for i, (text, is_finite) in zip(batches[number], answers, strict=True):
                texts[i] = text
                if not is_finite:
                    self.not_finite.add(arguments[i][0])
            journals.report(f"generating {self._label}", len(texts), len(order))
        return [texts[i] for i in range(len(requests))]

    def _generated(self, requests: list[Any]) -> list[tuple[str, bool]]:
        """The text for each request of a batch, and whether it came from finite logits."""
        self._watch.all_finite = True
        texts = super().generate_until(requests, disable_tqdm=True)
        if self._watch.all_finite or len(requests) == 1:
            return [(text, self._watch.all_finite) for text in texts]
        alone = [self._generated([request]) for request in requests]  # which of them?
        return [(text, is_finite) for text, [(_, is_finite)] in zip(texts, alone, strict=True)]

    def _model_generate(self, *args: Any, **kwargs: Any) -> Tensor:
        """As HFLM, watching the logits."""
        return super()._model_generate(*args, **kwargs, logits_processor=LogitsProcessorList([self._watch]))

    def count_tokens(self, context: str, continuation: str) -> int:
        """The tokens of a continuation whose log-likelihood is summed, as lm-eval encodes the pair."""
        return min(len(self._encode_pair(context, continuation)[1]), self.max_length)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids as in HFLM, taken from the strings that were tokenised together if possible."""
        if add_special_tokens is None and not kwargs and string in self._tokens:
            return self._tokens[string]
        return super().tok_encode(string, add_special_tokens, **kwargs)

    def _tokenise(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Tokenise in one call the strings that lm-eval will ask for, but for those that begin with BOS."""
        bos = self.tokenizer.decode(self.prefix_token_id)
        strings = {context.rstrip() for context, _ in pairs} | {context + more for context, more in pairs}
        plain = [s for s in strings if s and not s.startswith(bos)]
        if plain:
            special = {} if self.add_bos_token is None else {"add_special_tokens": self.add_bos_token}
            self._tokens = dict(zip(plain, self.tokenizer(plain, **special)["input_ids"], strict=True))

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Answer]:
        """The answers of the member in use. Those of the others are kept, unless the requests come without strings.

        That is so for texts to be scored whole, which lm-eval cuts into windows.
        """
        strings = [pair for pair, _, _ in requests if pair is not None]
        if not strings:
            return [scored[:2] for scored in self._score_all(requests, [self._member])[0]]
        for pair, context, continuation in requests:
            if pair is not None and len(context) + len(continuation) > self.max_length + 1:
                self.truncated.add(pair)
        scores = self._score_all(requests, list(range(len(self.group))))
        for answers, choices, of_member in zip(self._answers, self._choices, scores, strict=True):
            for pair, scored in zip(strings, of_member, strict=True):
                answers[pair] = scored[:2]
                if pair in self._keep_choices:
                    choices[pair] = scored.choices
        return [scored[:2] for scored in scores[self._member]]

    def _score_all(self, requests: Sequence[Request], members: list[int]) -> list[list[Scored]]:
        """Each of these members' answers, from its journal or computed, batch by batch."""
        rows = make_rows(requests, self.max_length, self._largest_tree(requests), self._keep_choices)
        # All batches are planned before those in journals are skipped. A tree's mask replaces a sliding window. Single
        # sequences may be longer than the window: they have batches of their own.
        batches = []
        for is_chain in (True, False):
            alike = [row for row in rows if row.tree.is_chain is is_chain]
            lengths = [len(row.tree.ids) for row in alike]
            batches += [[alike[i] for i in batch] for batch in by_length(lengths, self.tokens_per_batch)]
        plan = plan_of(batches)
        journals = [self._journals[member] for member in members]
        answers = [dict[int, Scored]() for _ in members]
        bar = tqdm(total=len(requests), desc=f"Scoring {self._label}".rstrip(), mininterval=1, disable=None)

        def score(number: int, missing: list[int]) -> list[list[Scored]]:
            return self._score(batches[number], [members[i] for i in missing])

        name = f"{self._label or 'model'}-{plan[:10]}"
        for number, results in journaled(journals, name, plan, len(batches), score):
            numbers = [n for row in batches[number] for n in row.requests]
            bar.update(len(numbers))
            for journal, of_member, scores in zip(journals, answers, results, strict=True):
                of_member |= zip(numbers, (Scored(*scored) for scored in scores), strict=True)
                journal.report(f"scoring {self._label}", len(of_member), len(requests))
        bar.close()
        return [[of_member[n] for n in range(len(requests))] for of_member in answers]

    def _largest_tree(self, requests: Sequence[Request]) -> int:
        """The most tokens of a tree; 0 if this model takes none.

        A tree's mask replaces that of a sliding window, so a tree must not be longer than the window.
        """
        if not self.shares_prefixes:
            return 0
        longest = max(len(context) + len(continuation) - 1 for _, context, continuation in requests)
        largest = max(2 * min(longest, self.max_length), min(LARGEST_TREE, self.tokens_per_batch))
        window = getattr(self.model.config.get_text_config(), "sliding_window", None)
        return largest if window is None else min(largest, window)

    def _score(self, rows: list[Row], members: list[int]) -> list[list[Scored]]:
        """Each member's answers to all requests of a batch, row after row. If memory runs out, the batch is split."""
        longest = max(len(row.tree.ids) for row in rows)
        planned = max(1, self.tokens_per_batch // longest)
        parts, size = in_batches(lambda part: self._score_at_once(part, members), rows, planned)
        if size < planned:
            self.tokens_per_batch = size * longest
            warnings.warn(f"Out of memory: going on with eval.tokens_per_batch={self.tokens_per_batch}.", stacklevel=2)
        return [[answer for part in parts for answer in part[i]] for i in range(len(members))]

    def _score_at_once(self, rows: list[Row], members: list[int]) -> list[list[Scored]]:
        nodes = [[node for request in row.nodes for node in request] for row in rows]
        requests = [request for row in rows for request in zip(row.targets, row.keeps_choices, strict=True)]
        targets_N = torch.tensor([token for targets, _ in requests for token in targets], device=self.device)

        def read(logits_NV: Tensor) -> list[Scored]:
            logprobs = logits_NV.log_softmax(dim=-1).gather(-1, targets_N[:, None]).squeeze(-1).tolist()
            choices_N = logits_NV.argmax(dim=-1)
            choices, greedy = choices_N.tolist(), (choices_N == targets_N).tolist()
            answers, start = [], 0
            for targets, keeps in requests:
                end = start + len(targets)
                own = choices[start:end] if keeps else []
                answers.append(Scored(sum(logprobs[start:end]), all(greedy[start:end]), own))
                start = end
            return answers

        return read_logits(self.group, members, [row.tree for row in rows], nodes, read)
