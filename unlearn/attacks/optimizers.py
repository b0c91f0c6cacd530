"""Optimizers and schedules of relearning, by name: those of torch, bitsandbytes, schedulefree and transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import get_scheduler

MOMENTUM = 0.9
OF_TORCH: dict[str, Any] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
    "sgd": partial(torch.optim.SGD, momentum=MOMENTUM),
    "nesterov": partial(torch.optim.SGD, momentum=MOMENTUM, nesterov=True),
}
ELSEWHERE = {  # name -> module, class
    "adamw_8bit": ("bitsandbytes.optim", "AdamW8bit"),
    "lion": ("bitsandbytes.optim", "Lion"),
    "adamw_schedule_free": ("schedulefree", "AdamWScheduleFree"),
}
OPTIMIZERS = (*OF_TORCH, *ELSEWHERE)
SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}  # of transformers


def lacks(optimizer: str) -> str | None:
    """The package that an optimizer needs and that is not installed, with the command that installs it."""
    package = ELSEWHERE.get(optimizer, ("torch", ""))[0].partition(".")[0]
    return None if find_spec(package) else f"it needs {package} (pip install 'unlearn-rna[attacks]')"


def make_optimizer(name: str, parameters: list[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """The optimizer of this name, with the other arguments as its library sets them."""
    if name in OF_TORCH:
        return OF_TORCH[name](parameters, lr=lr, weight_decay=weight_decay)
    module, class_name = ELSEWHERE[name]
    optimizer = getattr(import_module(module), class_name)(parameters, lr=lr, weight_decay=weight_decay)
    if name == "adamw_schedule_free":
        optimizer.train()
    return optimizer


def make_schedule(name: str, optimizer: torch.optim.Optimizer, warmup: float, steps: int) -> Any:
    """The learning rate of each of `steps` steps."""
    first = warmup_steps(warmup, steps)
    return get_scheduler(SCHEDULES[name], optimizer, num_warmup_steps=first, num_training_steps=steps)


def warmup_steps(warmup: float, steps: int) -> int:
    """In which the learning rate rises. `warmup` is their number or, below 1, their share of all `steps`."""
    return round(warmup * steps) if warmup < 1 else round(warmup)


class Masters:
    """The weights that the optimizer steps: float32 copies of parameters of a smaller dtype, and the others themselves.

    In bfloat16 a step below half a unit in the last place would be lost.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.weights = [as_float32(parameter) for parameter in parameters]
        self._copied = [pair for pair in zip(parameters, self.weights, strict=True) if pair[0] is not pair[1]]

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Step by the parameters' gradients, which are freed, and copy back."""
        for parameter, weight in self._copied:
            weight.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        optimizer.step()
        self._copy_back()
        optimizer.zero_grad(set_to_none=True)

    @contextmanager
    def evaluated(self, optimizer: Any) -> Iterator[None]:
        """Inside the block, the model has the weights that are to be evaluated: schedule-free ones are an average."""
        if not hasattr(optimizer, "eval"):
            yield
            return
        optimizer.eval()
        self._copy_back()
        try:
            yield
        finally:
            optimizer.train()
            self._copy_back()

    def _copy_back(self) -> None:
        for parameter, weight in self._copied:
            parameter.data.copy_(weight)


def as_float32(parameter: nn.Parameter) -> nn.Parameter:
    """The parameter, or a float32 copy of one of a smaller dtype."""
    return parameter if parameter.element_size() >= 4 else nn.Parameter(parameter.detach().float())
