"""Attacks that change every matrix of the decoder layers: rounding, pruning, noise. [O, I] is a matrix's shape.

Embeddings, the head and norms stay, as quantisation libraries have it. What was forgotten by small changes of the
weights comes back if rounding undoes these (Zhang et al., "Catastrophic Failure of LLM Unlearning via Quantization",
2024).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from unlearn.attacks.attack import Change, Victim, check_levels
from unlearn.methods.randomness import generator
from unlearn.models.architectures import decoder_layers

ROWS = 1024  # of a matrix that are changed at a time, in float32


@dataclass(frozen=True)
class Rounding(Change):
    """Weights rounded to so many bits: to the nearest of 2^bits - 1 levels between -m and m, m a row's largest entry.

    This simulates what a quantised model computes: the weights keep their dtype, and no quantised kernel runs.
    """

    levels: Sequence[int]  # 2 to 16
    level = "{:g} bits"

    def __post_init__(self) -> None:
        check_levels(self.levels, "integers from 2 to 16", lambda x: isinstance(x, int) and 2 <= x <= 16)

    def stages(self, victim: Victim) -> Generator[float, None, None]:
        """Bits."""
        return in_stages(victim.model, self.levels, rounded)


@dataclass(frozen=True)
class Pruning(Change):
    """The smallest entries of each row set to zero."""

    levels: Sequence[float]
    level = "{:g} of the entries"

    def __post_init__(self) -> None:
        check_levels(self.levels, "numbers above 0 and below 1", lambda x: 0 < x < 1)

    def stages(self, victim: Victim) -> Generator[float, None, None]:
        """Fractions."""
        return in_stages(victim.model, self.levels, pruned)


@dataclass(frozen=True)
class Noise(Change):
    """Normal noise, in units of the standard deviation of each row."""

    levels: Sequence[float]
    level = "{:g} standard deviations"

    def __post_init__(self) -> None:
        check_levels(self.levels, "numbers above 0", lambda x: x > 0)

    def uses(self, victim: Victim) -> dict[str, Any]:
        """The seed."""
        return {"seed": victim.seed}

    def stages(self, victim: Victim) -> Generator[float, None, None]:
        """Scales."""
        return in_stages(victim.model, self.levels, partial(noised, seed=victim.seed))


def rounded(bits: float, w_OI: Tensor, _name: str) -> Tensor:
    """Each entry as the nearest of the row's levels."""
    most = 2 ** (int(bits) - 1) - 1
    step_O1 = w_OI.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(w_OI.dtype).tiny) / most
    return (w_OI / step_O1).round() * step_O1


def pruned(fraction: float, w_OI: Tensor, _name: str) -> Tensor:
    """Without the entries of smallest magnitude, so many of each row."""
    count = round(fraction * w_OI.shape[1])
    if count == 0:
        return w_OI
    smallest = w_OI.abs().topk(count, dim=1, largest=False).indices
    return w_OI.scatter(1, smallest, 0.0)


def noised(scale: float, w_OI: Tensor, name: str, *, seed: int) -> Tensor:
    """With noise that depends on the seed and the rows' name."""
    draw_OI = torch.randn(w_OI.shape, generator=generator(seed, "attack", name))
    return w_OI + scale * w_OI.std(dim=1, keepdim=True) * draw_OI.to(w_OI.device)


def in_stages(
    model: PreTrainedModel, levels: Sequence[float], change: Callable[[float, Tensor, str], Tensor]
) -> Generator[float, None, None]:
    """Each level, while the model's matrices are what `change` makes of them at it."""
    for level in levels:
        with changed(model, partial(change, level)):
            yield level


@contextmanager
def changed(model: PreTrainedModel, change: Callable[[Tensor, str], Tensor]) -> Iterator[None]:
    """Inside the block, every matrix of the decoder layers is what `change` makes of it; originals wait on the CPU.

    `change` gets some rows in float32 and a name for them. Tensors of several experts are taken apart into their rows.
    """
    matrices = {name: p for name, p in decoder_layers(model).named_parameters() if p.dim() >= 2}
    originals = {name: parameter.data.to("cpu", copy=True) for name, parameter in matrices.items()}
    try:
        for name, parameter in matrices.items():
            rows = parameter.data.view(-1, parameter.shape[-1])
            for start in range(0, len(rows), ROWS):
                part = rows[start : start + ROWS]
                part.copy_(change(part.float(), f"{name}/{start}"))
        yield
    finally:
        for name, parameter in matrices.items():
            parameter.data.copy_(originals[name])
