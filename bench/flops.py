"""FLOPs of training, from a model's configuration alone.

A multiply-add is two FLOPs; norms, activations and the like are left out. F is one decoder layer's forward pass over
one token, d that of its trained matrices. Mixtures of experts count the experts that a token visits.
"""

from __future__ import annotations

from collections.abc import Sequence

from unlearn.arguments import SPAN
from unlearn.training.cost import Shape

Parts = dict[str, tuple[int, int]]  # "forget" and "retain" -> tokens of the batch, their sequences' length


def forward(shape: Shape, tokens: int, length: int) -> int:
    """FLOPs of one decoder layer's forward pass over `tokens` tokens in sequences of `length`, attention causal: F."""
    return 2 * shape.active * tokens + _attention(shape, tokens, length)


def _attention(shape: Shape, tokens: int, length: int) -> int:
    return 2 * shape.attention * tokens * (length + 1)  # scores and values: 2 x 2 x (length + 1) / 2 keys on average


def training_step(shape: Shape, parts: Parts, variants: int, *, frozen_forget: bool) -> int:
    """The fewest FLOPs of a step that shares all that can be shared.

    `frozen_forget`: whether the method asks for the frozen model's forget representation (RSV and the per-sample
    norm of Adaptive RMU do, RMU does not).
    """
    return sum(
        _shared(shape, *part, frozen=name == "retain" or frozen_forget) + variants * _variant(shape, *part)
        for name, part in parts.items()
    )


def _shared(shape: Shape, tokens: int, length: int, *, frozen: bool) -> int:
    f, d = forward(shape, tokens, length), 2 * shape.trained_active * tokens
    return (shape.layer - SPAN + 2) * f - d + (d + (SPAN - 1) * f if frozen else 0)


def _variant(shape: Shape, tokens: int, length: int) -> int:
    """Forward; gradients of activations in all layers but the first; gradients of the trained matrices."""
    f, d = forward(shape, tokens, length), 2 * shape.trained_active * tokens
    backward = (SPAN - 1) * (f + _attention(shape, tokens, length)) + SPAN * d
    return d + (SPAN - 1) * f + backward


def likelihood_step(
    shape: Shape,
    parts: Parts,
    variants: int,
    *,
    reference: Sequence[str],
    noises: int = 1,
    retain_reference: bool = True,
    recompute: bool = False,
) -> int:
    """The fewest FLOPs of a step of a method on likelihoods that shares all that can be shared.

    Args:
        reference: the parts whose likelihood the method takes under the frozen model, noise apart.
        noises: how many different noises (nu, seed) the variants have; the reference's suffix runs once for each.
        retain_reference: whether the retain loss compares with the frozen model ("kl", "mse"). Its head runs once a
            variant, so that its distributions need not be kept.
        recompute: whether layers above l run again in the backward pass.
    """
    later, total = shape.layers - shape.layer - 1, 0
    for name, (tokens, length) in parts.items():
        compared = name == "retain" and retain_reference
        asked = name in reference
        predicted = tokens if compared else tokens - tokens // length  # nothing predicts a text's first token
        f, head = forward(shape, tokens, length), 2 * shape.head * predicted
        total += _shared(shape, tokens, length, frozen=compared or asked)
        total += (noises if compared else 0) * later * f + (later * f + head if asked else 0)
        own = _variant(shape, tokens, length)
        own += later * (2 * f + _attention(shape, tokens, length)) + 2 * head + (head if compared else 0)
        # What runs again ends before a layer's last matrix, whose result the backward pass does not need.
        again = later * (f - 2 * shape.trained_active * tokens) if recompute else 0
        total += variants * (own + again)
    return total


def published_likelihood_step(shape: Shape, parts: Parts, *, reference: Sequence[str]) -> int:
    """FLOPs of a step of the published code: two whole models, gradients of every parameter."""
    flops = 0
    for name, (tokens, length) in parts.items():
        whole = shape.layers * forward(shape, tokens, length) + 2 * shape.head * tokens
        flops += whole * (3 + (name in reference)) + shape.layers * _attention(shape, tokens, length)
    return flops


def published_step(shape: Shape, parts: Parts, *, frozen_forget: bool) -> int:
    """FLOPs of a step of the published code.

    Whole models with their heads, and gradients of every parameter up to layer l. Its Adaptive RMU and RMU need
    three forward passes, RSV four.
    """
    flops = 0
    for name, (tokens, length) in parts.items():
        f = forward(shape, tokens, length)
        passes = 2 if name == "retain" or frozen_forget else 1
        flops += passes * (shape.layers * f + 2 * shape.head * tokens) + (shape.layer + 1) * 2 * f
    return flops
