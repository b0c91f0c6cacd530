"""Batches of token ids: rows padded to one length, and which topic each step trains on.

B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from unlearn.data.corpora import Topic

Part = Literal["forget", "retain", "preferred"]


@dataclass(frozen=True)
class Padded:
    """A batch of token ids: int64 [B, T], and which positions are real tokens: bool [B, T]."""

    ids_BT: Tensor
    mask_BT: Tensor

    def to(self, device: torch.device) -> Padded:
        """The same batch on another device. The host does not wait for a GPU."""
        return Padded(to_device(self.ids_BT, device), to_device(self.mask_BT, device))


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """A tensor on another device. Copies to a GPU use pinned memory, so the host does not wait."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


@dataclass(frozen=True)
class Batch:
    """What one step of Algorithm 1 trains on."""

    step: int
    topic: str
    forget: Padded
    retain: Padded
    preferred: Padded | None = None  # texts that the method prefers to the forget texts

    @property
    def parts(self) -> dict[Part, Padded]:
        """The forget, retain and, if there are any, preferred texts."""
        parts: dict[Part, Padded] = {"forget": self.forget, "retain": self.retain}
        return parts if self.preferred is None else parts | {"preferred": self.preferred}

    @property
    def tokens(self) -> int:
        """The number of real tokens of all parts."""
        return sum(int(part.mask_BT.sum()) for part in self.parts.values())

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        preferred = None if self.preferred is None else self.preferred.to(device)
        return replace(self, forget=self.forget.to(device), retain=self.retain.to(device), preferred=preferred)


def batches(
    topics: Sequence[Topic],
    *,
    steps: int,
    batch_size: int,
    pad_id: int,
    side: str,
    start: int = 0,
    preferred: list[list[int]] | None = None,
    first_preferred: bool = False,
) -> Iterator[Batch]:
    """The batches of Algorithm 1 from step `start` on: of n topics, step t takes batch t // n of topic t mod n.

    Each topic has its own retain documents. Step t takes batch number t of the `preferred` texts, or always their first
    batch if `first_preferred` is set. After the last document of a corpus, its documents start over.
    `side` ("right" or "left") is where padding goes.
    """
    for step in range(start, steps):
        topic, number = topics[step % len(topics)], step // len(topics)
        yield Batch(
            step,
            topic.name,
            pad(_take(topic.forget, number, batch_size), pad_id, side),
            pad(_take(topic.retain, number, batch_size), pad_id, side),
            pad(_take(preferred, 0 if first_preferred else step, batch_size), pad_id, side) if preferred else None,
        )


def _take(documents: list[list[int]], number: int, size: int) -> list[list[int]]:
    start = number * size
    return [documents[i % len(documents)] for i in range(start, start + size)]


def pad(rows: list[list[int]], pad_id: int, side: str) -> Padded:
    """Rows of token ids as one tensor, padded to the longest."""
    assert side in ("right", "left"), side
    longest = max(map(len, rows))
    ids_BT = torch.full((len(rows), longest), pad_id, dtype=torch.long)
    mask_BT = torch.zeros((len(rows), longest), dtype=torch.bool)
    for i, row in enumerate(rows):
        at = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        ids_BT[i, at] = torch.tensor(row)
        mask_BT[i, at] = True
    return Padded(ids_BT, mask_BT)


def padding_id(tokenizer: PreTrainedTokenizerBase | None, vocabulary: int) -> int:
    """The token id of padding. If the model has none, any id will do: padding is masked or comes last."""
    ids = () if tokenizer is None else (tokenizer.pad_token_id, tokenizer.eos_token_id)
    # A tokenizer may have more ids than the model, with [PAD] added.
    return next((i for i in ids if i is not None and i < vocabulary), 0)
