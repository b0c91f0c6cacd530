"""Outputs of modules, recorded in one forward pass and replayed in others.

Models that differ in a few matrices agree in all modules before the first of these. So these modules run once, and the
other models replay the recorded outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import nn

Outputs = dict[nn.Module, list[Any]]  # module -> its output in each of its calls


def owners(module: nn.Module, parameters: Iterable[str]) -> set[nn.Module]:
    """The submodules that hold these parameters."""
    return {module.get_submodule(name.rpartition(".")[0]) for name in parameters}


@contextmanager
def recorded(module: nn.Module, changed: set[nn.Module]) -> Iterator[Outputs]:
    """Inside the block, record outputs of the largest submodules without a `changed` module, until one runs."""
    outputs: Outputs = {}
    reached = False

    def reach(*_args: Any) -> None:
        nonlocal reached
        reached = True

    def recording(part: nn.Module) -> Callable[..., Any]:
        forward = part.forward

        def run(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            if not reached:
                outputs.setdefault(part, []).append(output)
            return output

        return run

    hooks = [owner.register_forward_pre_hook(reach) for owner in changed]
    try:
        with forward_replaced({part: recording(part) for part in _largest_without(module, changed)}):
            yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def replayed(outputs: Outputs) -> AbstractContextManager[None]:
    """Inside the block, modules return their recorded outputs, one per call. When there are no more, they compute."""
    return forward_replaced({part: _returning(part, recording) for part, recording in outputs.items()})


@contextmanager
def forward_replaced(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Inside the block, these modules run another `forward`."""
    before = {module: module.__dict__["forward"] for module in forwards if "forward" in module.__dict__}
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module in forwards:
            module.__dict__.pop("forward", None)
        for module, forward in before.items():
            module.forward = forward


def _largest_without(module: nn.Module, changed: set[nn.Module]) -> Iterator[nn.Module]:
    """The largest submodules that neither are nor contain one of `changed`."""
    if module in changed:
        return
    for child in module.children():
        if changed.isdisjoint(child.modules()):
            yield child
        else:
            yield from _largest_without(child, changed)


def _returning(module: nn.Module, recording: list[Any]) -> Callable[..., Any]:
    forward, rest = module.forward, iter(recording)
    nothing = object()

    def run(*args: Any, **kwargs: Any) -> Any:
        output = next(rest, nothing)
        return forward(*args, **kwargs) if output is nothing else output

    return run
