"""MaxLogit (Eq. 11): the largest logit at each of the first greedy tokens after a query.

N queries, K tokens, B batch, T tokens of a prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from unlearn.data.batches import pad
from unlearn.evaluation.chat import encode_prompts
from unlearn.evaluation.journal import NO_JOURNALS, Journals, fingerprint, journaled
from unlearn.evaluation.rows import by_length
from unlearn.models.architectures import context_length, input_device
from unlearn.models.group import ModelGroup
from unlearn.models.memory import in_batches
from unlearn.screen import say

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class MaxLogits:
    """Largest logits float32 [N, K] and the greedy tokens int64 [N, K]."""

    values_NK: Tensor
    tokens_NK: Tensor

    def of(self, queries: Sequence[int]) -> MaxLogits:
        """The values of these queries."""
        return MaxLogits(self.values_NK[list(queries)], self.tokens_NK[list(queries)])

    def metrics(self) -> dict[str, float]:
        """Mean, standard deviation and quantiles over all queries and tokens."""
        flat = self.values_NK.flatten()
        quantiles = np.quantile(flat.numpy(), QUANTILES).tolist()
        named = {f"maxlogit_p{round(100 * q):02d}": value for q, value in zip(QUANTILES, quantiles, strict=True)}
        return {"maxlogit_mean": flat.mean().item(), "maxlogit_std": flat.std().item(), **named}


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

    Prompts that leave no room for them in the model's context are cut on the left, with a message. A batch holds about
    `tokens_per_batch` tokens, of prompts of similar length. Batches in a member's journal are not computed again.
    """
    encoded = _fitting(encode_prompts(tokenizer, prompts), context_length(group.model.config), count)
    batches = by_length([len(ids) + count for ids in encoded], tokens_per_batch)
    journals = journals or [NO_JOURNALS] * len(group)
    measured = [
        MaxLogits(torch.empty(len(encoded), count), torch.empty(len(encoded), count, dtype=torch.long))
        for _ in journals
    ]
    bar = tqdm(total=len(encoded), desc=f"MaxLogit {label}".rstrip(), mininterval=1, disable=None)
    plan = fingerprint([*batches, *encoded], count)

    def measure(number: int, missing: list[int]) -> list[list[Any]]:
        results = []
        for member in missing:
            with group.use(member):
                values_BK, tokens_BK = _continued(group.model, [encoded[i] for i in batches[number]], count)
            results.append([values_BK.tolist(), tokens_BK.tolist()])
        return results

    done = 0  # tqdm does not count where nothing is shown
    for number, results in journaled(journals, f"maxlogit-{plan[:10]}", plan, len(batches), measure):
        rows = batches[number]
        bar.update(len(rows))
        done += len(rows)
        for journal, (values, tokens), of_member in zip(journals, results, measured, strict=True):
            of_member.values_NK[rows], of_member.tokens_NK[rows] = torch.tensor(values), torch.tensor(tokens)
            journal.report(f"MaxLogit {label}", done, len(encoded))
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


def _continued(model: PreTrainedModel, prompts: list[list[int]], count: int) -> tuple[Tensor, Tensor]:
    """`continue_greedily`. If memory runs out, the batch is split."""
    parts, _ = in_batches(lambda part: continue_greedily(model, part, count), prompts, len(prompts))
    return torch.cat([values_BK for values_BK, _ in parts]), torch.cat([tokens_BK for _, tokens_BK in parts])


@torch.inference_mode()
def continue_greedily(model: PreTrainedModel, prompts: list[list[int]], count: int) -> tuple[Tensor, Tensor]:
    """Largest logits and greedy tokens after each prompt of one batch, on the CPU: [B, K] each."""
    part = pad(prompts, 0, "left").to(input_device(model))
    ids_BT, mask_BT = part.ids_BT, part.mask_BT.long()
    positions_BT = (mask_BT.cumsum(dim=1) - 1).clamp(min=0)
    cache, values, tokens = None, [], []
    for _ in range(count):
        output = model(
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
