"""The work that an evaluation cannot do without, and the work that was done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from bench.flops import forward
from unlearn.evaluation.tree import shared_length
from unlearn.training.cost import Shape


def distinct_tokens(sequences: Sequence[list[int]]) -> int:
    """Tokens that have to be computed: beginnings that sequences share count once."""
    ordered = sorted(sequences)
    return sum(map(len, ordered)) - sum(shared_length(a, b) for a, b in pairwise(ordered))


def least_flops(shape: Shape, sequences: Sequence[list[int]], scored: int) -> int:
    """FLOPs of these sequences' distinct tokens, and of the head at `scored` positions."""
    length = sum(map(len, sequences)) // len(sequences)
    return forward_flops(shape, distinct_tokens(sequences), length, scored)


def forward_flops(shape: Shape, tokens: int, length: int, scored: int) -> int:
    """FLOPs of all layers for tokens of sequences of `length`, and of the head at `scored` positions."""
    return shape.layers * forward(shape, tokens, length) + 2 * shape.head * scored


def counted_flops(run: Callable[[], Any]) -> int:
    """FLOPs of the matrix products and the attention that `run` computes, padding included."""

    def attention(query: Any, key: Any, value: Any, *_args: Any, **_kwargs: Any) -> int:
        return sdpa_flop_count(query, key, value)

    cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={cpu: attention}) as counter:
        run()
    return counter.get_total_flops()
