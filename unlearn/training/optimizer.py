"""The optimizers and the learning rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class PublishedAdamW(torch.optim.AdamW):
    """AdamW with eps added *before* the bias correction, as in transformers < 5 and the published code.

    At step t = 1, 2, ... it equals torch's AdamW with eps / sqrt(1 - beta2^t): 32 times larger at first, equal in
    the end. The published code has no weight decay; with it, transformers decays after the step and torch before.
    """

    def __init__(self, params: Iterable[Tensor], *, eps: float, **kwargs: Any) -> None:
        super().__init__(params, eps=eps, **kwargs)
        self._eps = eps
        self._updates: int | None = None  # so far; counted here, since reading the state waits for the device

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter."""
        if self._updates is None:  # a resumed training begins with some
            self._updates = max((int(state["step"]) for state in self.state.values()), default=0)
        self._updates += 1
        for group in self.param_groups:
            group["eps"] = self._eps / math.sqrt(1 - group["betas"][1] ** self._updates)
        return super().step(closure)


def schedule(name: str, lr: float, steps: int) -> Callable[[int], float]:
    """Learning rate of step t = 0, 1, ..., T - 1: "constant" lr, or "linear" lr (1 - t / T)."""
    return {"constant": lambda _: lr, "linear": lambda t: lr * (1 - t / steps)}[name]


OPTIMIZERS: dict[str, type[torch.optim.AdamW]] = {"adamw": torch.optim.AdamW, "adamw_published": PublishedAdamW}
