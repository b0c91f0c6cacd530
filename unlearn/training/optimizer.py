"""The optimizers and the learning rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unlearn.arguments import OPTIMIZERS, PRECISIONS, SCHEDULES, check_choice, check_number
from unlearn.errors import UserError


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


@dataclass(frozen=True)
class Optimizer:
    """AdamW, and how it is used.

    Args:
        name: "adamw", or "adamw_published": eps is added before the bias correction.
        schedule: of the learning rate: "constant", or "linear" (falling to zero after the last step).
        betas: decay of the two moments, each in [0, 1).
        eps: at least 0.
        weight_decay: at least 0.
        precision: "master" trains float32 copies of the matrices, "model" trains them in the model's dtype.

    Raises:
        UserError: an argument is not allowed.
    """

    name: str = "adamw"
    schedule: str = "constant"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    precision: str = "master"

    def __post_init__(self) -> None:
        check_choice("name", self.name, OPTIMIZERS)
        check_choice("schedule", self.schedule, SCHEDULES)
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"betas={self.betas} is not allowed: it must be two numbers in [0, 1).")
        check_number("eps", self.eps, at_least=0)
        check_number("weight_decay", self.weight_decay, at_least=0)
        check_choice("precision", self.precision, PRECISIONS)

    def of(self, weights: Iterable[Tensor], lr: float) -> torch.optim.AdamW:
        """The optimizer of these matrices."""
        cls = PublishedAdamW if self.name == "adamw_published" else torch.optim.AdamW
        return cls(weights, lr=lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay, fused=True)
