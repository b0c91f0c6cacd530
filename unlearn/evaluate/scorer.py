"""lm-eval's Hugging Face model class, with the same log-likelihoods computed faster.

- The common beginning of several prompts is computed once: as the trunk of a tree (see `unlearn.evaluate.tree`), or, if
  all rows of a batch share it, as a key-value cache for all of them.
- The head runs only at the scored positions.
- A batch holds rows of similar length, and is bounded by tokens, not by rows.
- Prompts are tokenised in one call.

- Models that differ in a few matrices are asked together, batch by batch: what runs before these runs once for all.

How prompts are cut, scored and summed is inherited. R rows, L nodes, D hidden size, V vocabulary.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from unlearn.evaluate.journal import NO_JOURNALS, Journals, Work, fingerprint
from unlearn.evaluate.tree import Tree, grow, mask, shared_length
from unlearn.models.architectures import head_of, input_device
from unlearn.models.group import Forward, ModelGroup
from unlearn.models.memory import in_batches
from unlearn.storage.hashing import json_sha256

WORTH_CACHING = 8  # common tokens for which a forward pass of their own pays
GENERATION_LENGTH = 512  # tokens assumed for a row in tasks that generate text, which lm-eval batches itself
Answer = tuple[float, bool]  # log-likelihood of a continuation, and whether greedy decoding gives it
Request = tuple[tuple[str, str] | None, list[int], list[int]]  # strings, and tokens of context and continuation
Result = TypeVar("Result")


@dataclass(frozen=True)
class Row:
    """A row of a batch: a tree of token ids; of each request that it answers, number, scored nodes, their tokens."""

    tree: Tree
    requests: list[int]
    nodes: list[list[int]]
    targets: list[list[int]]


class Scorer(HFLM):
    """The language model that lm-eval asks, for each member of a group of models; see `member`.

    `tokens_per_batch` bounds the tokens of a forward pass, padding included. A single longer row still runs.

    Requests are answered from the results of `prepare`. Batches in a member's journal are skipped.
    """

    def __init__(
        self,
        group: ModelGroup,
        tokenizer: PreTrainedTokenizerBase,
        tokens_per_batch: int,
        journals: Sequence[Journals] | None = None,
    ) -> None:
        rows = max(1, tokens_per_batch // GENERATION_LENGTH)
        super().__init__(pretrained=group.model, tokenizer=tokenizer, batch_size=rows, backend="causal")
        self._device = input_device(group.model)  # lm-eval takes that of any part
        self.group = group
        self.tokens_per_batch = tokens_per_batch
        self.truncated: set[tuple[str, str]] = set()  # requests longer than the model's context, cut on the left
        self._member = 0
        self._answers: list[dict[tuple[str, str], Answer]] = [{} for _ in range(len(group))]
        self._encoded: dict[str, list[int]] = {}
        self._label = ""
        self._journals = journals or [NO_JOURNALS] * len(group)
        head = head_of(group.model)
        assert head is not None
        self._head = head
        self._window = getattr(self.model.config.get_text_config(), "sliding_window", None)
        self.shares_prefixes = self._check_trees()

    @contextmanager
    def member(self, number: int) -> Iterator[None]:
        """Inside the block, this member of the group answers."""
        self._member, before = number, self._member
        try:
            with self.group.use(number):
                yield
        finally:
            self._member = before

    def prepare(self, requests: Sequence[Any], label: str = "") -> None:
        """Compute all log-likelihood requests of all members, so that tasks and queries can share beginnings."""
        pairs = {r.args for r in requests if r.request_type == "loglikelihood"} - self._answers[0].keys()
        ordered = sorted(pairs)  # the order of a set differs from run to run
        if not ordered:
            return
        self._encode_together(ordered)
        self._label = label
        super().loglikelihood([SimpleNamespace(args=pair) for pair in ordered], disable_tqdm=True)
        self._encoded.clear()

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[Answer]:
        """An answer for each request."""
        self.prepare(requests)
        return [self._answers[self._member][request.args] for request in requests]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """A text for each request, by the member in use: batches of prompts of similar length, kept in its journal."""
        arguments = [request.args for request in requests]
        order = sorted(range(len(requests)), key=lambda i: -len(arguments[i][0]))
        size = int(self.batch_size)
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        plan = json_sha256([size, arguments])
        journals = self._journals[self._member]
        work = Work([journals], f"{self._label or 'model'}-texts-{plan[:10]}", plan, len(batches))
        texts: dict[int, str] = {}

        def generate(number: int, _members: list[int]) -> list[list[str]]:
            return [super(Scorer, self).generate_until([requests[i] for i in batches[number]], disable_tqdm=True)]

        for number, [found] in work.results(generate):
            texts |= zip(batches[number], found, strict=True)
            journals.report(f"generating {self._label}", len(texts), len(order))
        return [texts[i] for i in range(len(requests))]

    def count_tokens(self, context: str, continuation: str) -> int:
        """The tokens of a continuation whose log-likelihood is summed, as lm-eval encodes the pair."""
        return min(len(self._encode_pair(context, continuation)[1]), self.max_length)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids as in HFLM, taken from the strings that were tokenised together if possible."""
        if add_special_tokens is None and not kwargs and string in self._encoded:
            return self._encoded[string]
        return super().tok_encode(string, add_special_tokens, **kwargs)

    def _encode_together(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Tokenise the strings that lm-eval will ask for in one call, unless its rule for BOS is a special one."""
        bos = self.tokenizer.decode(self.prefix_token_id)
        strings = {context.rstrip() for context, _ in pairs} | {context + more for context, more in pairs}
        plain = [s for s in strings if s and not s.startswith(bos)]
        if plain:
            special = {} if self.add_bos_token is None else {"add_special_tokens": self.add_bos_token}
            self._encoded = dict(zip(plain, self.tokenizer(plain, **special)["input_ids"], strict=True))

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Answer]:
        """The answers of the member in use. Those of the others are kept, unless the requests come without strings.

        That is so for texts to be scored whole, which lm-eval cuts into windows.
        """
        strings = [pair for pair, _, _ in requests if pair is not None]
        if not strings:
            return self._answers_of(requests, [self._member])[0]
        found = self._answers_of(requests, list(range(len(self.group))))
        for known, answers in zip(self._answers, found, strict=True):
            known |= zip(strings, answers, strict=True)
        return found[self._member]

    def _answers_of(self, requests: Sequence[Request], members: list[int]) -> list[list[Answer]]:
        """The answers of each of these members, from its journal or computed, batch by batch."""
        batches = self._batches(self._rows(requests))  # all planned, before batches in journals are skipped
        plan = _fingerprint(batches)
        answers = [dict[int, Answer]() for _ in members]
        bar = tqdm(total=len(requests), desc=f"Scoring {self._label}".rstrip(), mininterval=1, disable=None)
        journals = [self._journals[member] for member in members]

        def score(number: int, missing: list[int]) -> list[Any]:
            scored = self._score(batches[number], [members[i] for i in missing])
            return [[self.tokens_per_batch, found] for found in scored]

        work = Work(journals, f"{self._label or 'model'}-{plan[:10]}", plan, len(batches))
        for number, results in work.results(score):
            asked = [n for row in batches[number] for n in row.requests]
            bar.update(len(asked))
            for own, known, (size, found) in zip(journals, answers, results, strict=True):
                self.tokens_per_batch = min(self.tokens_per_batch, size)  # memory had run out: also when resumed
                known |= zip(asked, map(tuple, found), strict=True)
                own.report(f"scoring {self._label}", len(known), len(requests))
        bar.close()
        return [[known[n] for n in range(len(requests))] for known in answers]

    def _rows(self, requests: Sequence[Request]) -> list[Row]:
        """All requests as rows, the longest first, so that memory runs out at the start if at all."""
        sequences, requests_of = self._plan(requests)
        if self.shares_prefixes:
            trees = grow(sequences, self._largest_tree(sequences))
        else:
            trees = [_alone(sequence, i) for i, sequence in enumerate(sequences)]
        targets = [continuation[-self.max_length :] for _, _, continuation in requests]
        rows = []
        for tree, members in trees:
            asked = [(n, path) for i, path in zip(members, tree.paths, strict=True) for n in requests_of[i]]
            nodes = [path[len(path) - len(targets[n]) :] for n, path in asked]
            rows.append(Row(tree, [n for n, _ in asked], nodes, [targets[n] for n, _ in asked]))
        return sorted(rows, key=lambda row: -len(row.tree.ids))

    def _plan(self, requests: Sequence[Request]) -> tuple[list[list[int]], list[list[int]]]:
        """The distinct sequences to run, and the numbers of the requests that each one answers.

        As in HFLM, a continuation's last token is not an input, and a sequence that is too long is cut on the left.
        """
        found: dict[tuple[int, ...], list[int]] = {}
        for number, (strings, context, continuation) in enumerate(requests):
            whole = context + continuation
            if strings is not None and len(whole) > self.max_length + 1:
                self.truncated.add(strings)
            found.setdefault(tuple(whole[-(self.max_length + 1) :][:-1]), []).append(number)
        return [list(tokens) for tokens in found], list(found.values())

    def _largest_tree(self, sequences: list[list[int]]) -> int:
        """The largest number of nodes of a tree. Attention over larger trees would cost more than sharing saves.

        The mask of a tree replaces that of a sliding window, so a tree must not be longer than the window.
        """
        largest = max(2 * max(map(len, sequences)), min(2048, self.tokens_per_batch))
        return largest if self._window is None else min(largest, self._window)

    def _batches(self, rows: list[Row]) -> list[list[Row]]:
        """Batches of rows in their order, within `tokens_per_batch`, padded to the first row, which is the longest.

        At most an eighth of a row is padding. Single sequences need no mask, so they are not mixed with trees.
        """
        batches = []
        for kind in (False, True):
            rest = [row for row in rows if row.tree.is_chain is kind]
            while rest:
                longest = len(rest[0].tree.ids)
                fitting = rest[: max(1, self.tokens_per_batch // longest)]
                batches.append([row for row in fitting if 8 * len(row.tree.ids) >= 7 * longest])
                rest = rest[len(batches[-1]) :]
        return batches

    def _score(self, rows: list[Row], members: list[int]) -> list[list[Answer]]:
        """Each member's answers to all requests of a batch, row after row. If memory runs out, the batch is split."""
        longest = max(len(row.tree.ids) for row in rows)
        planned = max(1, self.tokens_per_batch // longest)
        found, size = in_batches(lambda part: self._score_at_once(part, members), rows, planned)
        if size < planned:
            self.tokens_per_batch = size * longest
            warnings.warn(f"Out of memory: going on with eval.tokens_per_batch={self.tokens_per_batch}.", stacklevel=2)
        return [[answer for part in found for answer in part[i]] for i in range(len(members))]

    def _score_at_once(self, rows: list[Row], members: list[int]) -> list[list[Answer]]:
        nodes = [[node for request in row.nodes for node in request] for row in rows]
        requests = [request for row in rows for request in row.targets]
        wanted_N = torch.tensor([token for request in requests for token in request], device=self.device)

        def read(logits_NV: Tensor) -> list[Answer]:
            logprobs = logits_NV.log_softmax(dim=-1).gather(-1, wanted_N[:, None]).squeeze(-1).tolist()
            greedy = (logits_NV.argmax(dim=-1) == wanted_N).tolist()
            found, at = [], 0
            for request in requests:
                here = slice(at, at + len(request))
                found.append((sum(logprobs[here]), all(greedy[here])))
                at += len(request)
            return found

        return self._logits([row.tree for row in rows], nodes, read, members)

    @torch.inference_mode()
    def _logits(
        self,
        trees: list[Tree],
        nodes: list[list[int]],
        read: Callable[[Tensor], Result],
        members: Sequence[int] = (),
        *,
        masked: bool = False,
    ) -> list[Result]:
        """What `read` makes of each member's logits at the given nodes, row after row: float32 [N, V].

        Without members, of the model's own. `masked`: use a mask in any case.
        """
        needs_mask = masked or not all(tree.is_chain for tree in trees)
        length = max(len(tree.ids) for tree in trees)
        if needs_mask and self.device.type != "cpu":
            length = -(-length // 8) * 8  # as GPU kernels need it of a mask
        ids_RL = torch.tensor([tree.ids + [0] * (length - len(tree.ids)) for tree in trees], device=self.device)
        done = self._common_beginning(trees, nodes)
        inputs: dict[str, Any] = {"use_cache": done > 0}
        if needs_mask:
            positions = [tree.positions + [0] * (length - len(tree.ids)) for tree in trees]
            inputs["position_ids"] = torch.tensor(positions, device=self.device)[:, done:]
            inputs["attention_mask"] = mask(trees, length, self.model.dtype)[:, :, done:].to(self.device)
        rows = torch.tensor([r for r, row in enumerate(nodes) for _ in row], device=self.device)
        places = torch.tensor([i - done for row in nodes for i in row], device=self.device)

        def only_these(_head: torch.nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            here = args[0].device  # of a model that is spread over several, another one than that of the inputs
            return (args[0][rows.to(here), places.to(here)][None], *args[1:])

        def run(forward: Forward) -> Result:
            cache = {}
            if done:
                beginning = forward(input_ids=ids_RL[:1, :done], use_cache=True, logits_to_keep=1).past_key_values
                beginning.batch_repeat_interleave(len(trees))
                cache = {"past_key_values": beginning}
            # The head runs on the wanted positions only. What a model does after it (scaling, soft-capping) is
            # elementwise.
            hook = self._head.register_forward_pre_hook(only_these)
            try:
                return read(forward(input_ids=ids_RL[:, done:], **inputs, **cache).logits[0].float())
            finally:
                hook.remove()

        return self.group.each(run, members) if members else [run(self.model)]

    def _common_beginning(self, trees: list[Tree], nodes: list[list[int]]) -> int:
        """The number of unscored tokens that all rows begin with, which run once and are cached; 0 if too few."""
        too_long = self._window is not None and max(len(tree.ids) for tree in trees) > self._window
        if len(trees) == 1 or not self.shares_prefixes or too_long:
            return 0
        common = min(*(tree.trunk for tree in trees), *(i for row in nodes for i in row))
        first, *others = (tree.ids[:common] for tree in trees)
        common = min(shared_length(first, other) for other in others)
        return common if common >= WORTH_CACHING else 0

    def _check_trees(self) -> bool:
        """Whether trees and cached beginnings give the right logits, in this model with its attention kernel.

        The model itself is asked, so that each member is asked in the same way in any group.

        In half precision, logits differ by rounding as soon as another kernel or batch shape computes them. So trees
        may differ from sequences alone by little more than masked rows of one batch do.
        """
        beginning = list(range(5, 5 + WORTH_CACHING))
        branches = [[*beginning, 6, 9], [*beginning, 6, 10, 11], [*beginning, 12, 13], [*beginning, 12, 14]]
        trees = [tree for tree, _ in (grow(branches[:2], 100) + grow(branches[2:], 100))]
        ends = [[path[-1] for path in tree.paths] for tree in trees]
        single, last = [_alone(s, 0)[0] for s in branches], [[len(s) - 1] for s in branches]
        self.shares_prefixes, self.tree_error = True, math.inf

        def logits(trees: list[Tree], nodes: list[list[int]], *, masked: bool = False) -> Tensor:
            return self._logits(trees, nodes, lambda logits_NV: logits_NV, masked=masked)[0]

        try:
            together_NV = logits(trees, ends)
            self.shares_prefixes = False
            masked_NV = logits(single, last, masked=True)
        except (TypeError, ValueError, RuntimeError, AttributeError):
            return False
        alone_NV = torch.cat([logits([tree], [end]) for tree, end in zip(single, last, strict=True)])
        self.tree_error, rounding = (
            ((other_NV - alone_NV).norm() / alone_NV.norm()).item() for other_NV in (together_NV, masked_NV)
        )
        tolerance = 1e-4 if self.model.dtype.itemsize >= 4 else min(0.1, max(2e-2, 2 * rounding))
        return self.tree_error <= tolerance


def _alone(sequence: Sequence[int], number: int) -> tuple[Tree, list[int]]:
    tree = Tree()
    tree.add(sequence, 0, 0)
    return tree, [number]


def _fingerprint(batches: list[list[Row]]) -> str:
    """Of all that determines the answers: every batch's trees, and the requests and their scored tokens."""
    rows = [row for batch in batches for row in batch]
    numbers = [part for row in rows for part in (row.tree.ids, row.requests, *row.nodes, *row.targets)]
    return fingerprint(numbers, [len(batch) for batch in batches])
