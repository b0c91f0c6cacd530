"""Adding the noise of RNA to the target of the retain loss (Eq. 8, Algorithm 1 line 9), or of a placebo elsewhere.

B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from unlearn.methods.losses import at_least_float32
from unlearn.methods.randomness import generator
from unlearn.methods.rna import FORGET_TARGET, RNA

# Seed, topic, step, what has noise of its own (`RNA.per`), and whose tokens get it, which changes no value.
Key = tuple[int, str, int, str, str]


@dataclass(frozen=True)
class Augmentation:
    """The noise of one variant. Two with equal fields add equal noise. `ahead` draws it for all variants."""

    rna: RNA
    seed: int
    ahead: Ahead | None = field(default=None, compare=False)

    @property
    def part(self) -> str:
        """The texts whose tokens get the noise."""
        return "forget" if self.rna.where == FORGET_TARGET else "retain"

    def __call__(self, target_BTD: Tensor, mask_BT: Tensor, topic: str, step: int) -> Tensor:
        """The target with noise delta ~ N(0, std^2 I), drawn anew for every step, token (or text) and dimension.

        Args:
            target_BTD: the frozen model's retain representation (of a placebo: what its noise is added to), any
                floating dtype.
            mask_BT: bool, True at the positions that the loss counts; others get no noise.
            topic, step: with the seed and the row in the batch, the key of the noise.

        Returns:
            [B, T, D] in float32 or better; `target_BTD` itself if there is no noise.
        """
        if self.rna.nu == 0:
            return target_BTD
        key = (self.seed, topic, step, self.rna.per, self.part)
        noise_BTD = None if self.ahead is None else self.ahead.take(key)
        target_BTD = at_least_float32(target_BTD)
        if noise_BTD is None:
            noise_ND = _noise(tuple(mask_BT.sum(dim=1).tolist()), target_BTD.shape[-1], key)
            noise_BTD = torch.zeros_like(target_BTD)
            noise_BTD[mask_BT] = noise_ND.to(target_BTD)
        return target_BTD + self.rna.std * noise_BTD

    def prepare(self, mask_BT: Tensor, topic: str, step: int) -> None:
        """Begin to draw the noise of a coming step: see `Ahead.draw`."""
        if self.ahead is not None and self.rna.nu > 0:
            self.ahead.draw(mask_BT, (self.seed, topic, step, self.rna.per, self.part))


def of_equal_norm(gradients: Sequence[Tensor | None], seed: int, topic: str, step: int) -> list[Tensor | None]:
    """For each gradient, Gaussian noise that is scaled to its norm; the key alone determines the direction."""
    drawn: list[Tensor | None] = []
    for number, gradient in enumerate(gradients):
        if gradient is None:
            drawn.append(None)
            continue
        noise = torch.randn(gradient.shape, generator=generator(seed, "gradient noise", topic, step, number))
        noise = noise.to(gradient.device)
        drawn.append((noise * (at_least_float32(gradient).norm() / noise.norm())).to(gradient.dtype))
    return drawn


@lru_cache(maxsize=2)  # the points of a grid differ in nu and share the draw; two parts of a batch
def _noise(counts: tuple[int, ...], dim: int, key: Key) -> Tensor:
    """Standard normal noise for each row's `counts` tokens, row after row: float32 [N, D] on the CPU."""
    return torch.cat([_row(count, dim, key, row) for row, count in enumerate(counts)])


def _row(count: int, dim: int, key: Key, row: int) -> Tensor:
    seed, topic, step, per, _ = key
    draws = 1 if per == "text" else count
    return torch.randn(draws, dim, generator=generator(seed, "noise", topic, step, row)).expand(count, dim)


class Ahead:
    """Noise of the next step, drawn by other threads while a GPU works on this one. One for all variants of a training.

    A GPU takes tens of milliseconds for a step, and so does one thread of the host for its noise. A thread draws a row
    of the batch. The values are those that would be drawn without: the key determines them, not the place. On a CPU
    nothing is drawn ahead, as that would take the time of the threads that compute.
    """

    def __init__(self, dim: int, device: torch.device, *, always: bool = False) -> None:
        self._dim, self._device = dim, device
        self._active = always or device.type == "cuda"
        self._threads = ThreadPoolExecutor(max_workers=8, thread_name_prefix="noise")
        self._drawn: dict[Key, tuple[Tensor, list[Future[None]]]] = {}
        self._current: dict[tuple[int, str, str], tuple[Key, Tensor]] = {}  # seed, per, part -> the step's

    def draw(self, mask_BT: Tensor, key: Key) -> None:
        """Begin to draw the noise of a coming step; returns at once. `mask_BT` is on the CPU."""
        if not self._active or key in self._drawn:  # variants with the same seed share the noise
            return
        noise_BTD = torch.zeros(*mask_BT.shape, self._dim, pin_memory=self._device.type == "cuda")

        def fill(row: int) -> None:
            counted_T = mask_BT[row]
            noise_BTD[row, counted_T] = _row(int(counted_T.sum()), self._dim, key, row)

        self._drawn[key] = noise_BTD, [self._threads.submit(fill, row) for row in range(len(mask_BT))]

    def take(self, key: Key) -> Tensor | None:
        """The noise of this step on the device, float32 [B, T, D]; None if it was not drawn ahead."""
        seed, _, _, per, part = key
        if key in self._drawn:
            noise_BTD, rows = self._drawn.pop(key)
            for row in rows:
                row.result()
            self._current[seed, per, part] = key, noise_BTD.to(self._device, non_blocking=True)
        current = self._current.get((seed, per, part))
        return current[1] if current is not None and current[0] == key else None
