"""MaxLogit (Eq. 11): the largest logit at each of the first greedy tokens after a query.

N queries, K tokens, B batch, T tokens of a prompt, V vocabulary.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from unlearn.data.batches import pad
from unlearn.evaluate.chat import encode_prompts
from unlearn.evaluate.journal import NO_JOURNALS, Journals, Work, fingerprint
from unlearn.models.architectures import context_length, input_device
from unlearn.models.group import Forward, ModelGroup
from unlearn.models.memory import in_batches
from unlearn.screen import say

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class MaxLogits:
    """Largest logits float32 [N, K] and the greedy tokens int64 [N, K]."""

    values_NK: Tensor
    tokens_NK: Tensor

    def of(self, queries: Sequence[int]) -> MaxLogits:
        """The rows of these queries."""
        return MaxLogits(self.values_NK[list(queries)], self.tokens_NK[list(queries)])

    def metrics(self) -> dict[str, float]:
        """Mean, standard deviation and quantiles over all queries and tokens."""
        flat = self.values_NK.flatten()
        found = {"maxlogit_mean": flat.mean().item(), "maxlogit_std": flat.std().item()}
        return found | {
            f"maxlogit_p{round(100 * q):02d}": v
            for q, v in zip(QUANTILES, np.quantile(flat.numpy(), QUANTILES).tolist(), strict=True)
        }

    def parquet(self, questions: Sequence[int]) -> bytes:
        """A row for each query and token: question (its id), position, token, maxlogit."""
        count, width = self.values_NK.shape
        rows = {
            "question": [q for q in questions for _ in range(width)],
            "position": list(range(width)) * count,
            "token": self.tokens_NK.flatten().tolist(),
            "maxlogit": self.values_NK.flatten().tolist(),
        }
        out = io.BytesIO()
        datasets.Dataset.from_dict(rows).to_parquet(out)
        return out.getvalue()


def max_logits(
    group: ModelGroup,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    count: int,
    tokens_per_batch: int,
    label: str = "",
    journals: Sequence[Journals] | None = None,
) -> list[MaxLogits]:
    """Each member of the group generates `count` tokens greedily after each prompt, not stopping at end of text.

    Prompts that leave no room for them in the model's context are cut on the left, which is said. A batch holds about
    `tokens_per_batch` tokens, of prompts of similar length. Batches in a member's journal are skipped.
    """
    encoded = _fitting(encode_prompts(tokenizer, prompts), context_length(group.model.config), count)
    batches = by_length([len(ids) for ids in encoded], count, tokens_per_batch)
    journals = journals or [NO_JOURNALS] * len(group)
    measured = [
        MaxLogits(torch.empty(len(encoded), count), torch.empty(len(encoded), count, dtype=torch.long))
        for _ in journals
    ]
    bar = tqdm(total=len(encoded), desc=f"MaxLogit {label}".rstrip(), mininterval=1, disable=None)
    plan = fingerprint([*batches, *encoded], count)

    def measure(number: int, missing: list[int]) -> list[list[Any]]:
        found = _continuations(group, [encoded[i] for i in batches[number]], count, missing)
        return [[values_BK.tolist(), tokens_BK.tolist()] for values_BK, tokens_BK in found]

    done = 0  # tqdm does not count where nothing is shown
    for number, results in Work(journals, f"maxlogit-{plan[:10]}", plan, len(batches)).results(measure):
        rows = batches[number]
        bar.update(len(rows))
        done += len(rows)
        for own, (values, tokens), into in zip(journals, results, measured, strict=True):
            into.values_NK[rows], into.tokens_NK[rows] = torch.tensor(values), torch.tensor(tokens)
            own.report(f"MaxLogit {label}", done, len(encoded))
    bar.close()
    return measured


def _fitting(prompts: list[list[int]], context: int | None, count: int) -> list[list[int]]:
    """The ends of the prompts for which, with `count` tokens behind them, the context is long enough."""
    if context is None:
        return prompts
    room = max(1, context - count + 1)  # the last token is generated, and not read
    if cut := sum(len(ids) > room for ids in prompts):
        say(f"MaxLogit: {cut} prompts are too long for the model's context and lost their beginning.")
    return [ids[-room:] for ids in prompts]


def _continuations(
    group: ModelGroup, prompts: list[list[int]], count: int, members: list[int]
) -> list[tuple[Tensor, Tensor]]:
    """`continue_greedily` by each of these members. If memory runs out, the batch is split."""

    def at_once(part: list[list[int]]) -> list[tuple[Tensor, Tensor]]:
        return group.each(lambda forward: continue_greedily(group.model, part, count, forward), members)

    parts, _ = in_batches(at_once, prompts, len(prompts))
    return [
        (torch.cat([part[i][0] for part in parts]), torch.cat([part[i][1] for part in parts]))
        for i in range(len(members))
    ]


def by_length(lengths: list[int], count: int, tokens_per_batch: int) -> list[list[int]]:
    """Batches of prompts, by their numbers, the longest first; `count` tokens are added to each prompt."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batches = []
    while order:
        size = max(1, tokens_per_batch // (lengths[order[0]] + count))
        batches.append(order[:size])
        order = order[size:]
    return batches


@torch.inference_mode()
def continue_greedily(
    model: PreTrainedModel, prompts: list[list[int]], count: int, forward: Forward | None = None
) -> tuple[Tensor, Tensor]:
    """Largest logits and greedy tokens after each prompt of one batch, on the CPU: [B, K] each.

    `forward` runs the prompts in place of the model, see `ModelGroup.each`.
    """
    part = pad(prompts, 0, "left").to(input_device(model))
    ids_BT, mask_BT = part.ids_BT, part.mask_BT.long()
    positions_BT = (mask_BT.cumsum(dim=1) - 1).clamp(min=0)
    cache, values, tokens = None, [], []
    for step in range(count):
        run = forward if step == 0 and forward is not None else model
        output = run(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            position_ids=positions_BT,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = output.past_key_values
        largest_B, greedy_B = output.logits[:, -1].float().max(dim=-1)
        values.append(largest_B)
        tokens.append(greedy_B)
        ids_BT, positions_BT = greedy_B[:, None], positions_BT[:, -1:] + 1
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(mask_BT), 1)], dim=1)
    return torch.stack(values, dim=1).cpu(), torch.stack(tokens, dim=1).cpu()
