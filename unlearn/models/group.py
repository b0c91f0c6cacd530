"""Several models that differ in a few matrices: one model in memory, with their matrices in turn.

What runs before the first of these matrices is the same for all, and runs once for all (see `unlearn.models.replay`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from unlearn.models.architectures import decoder_layers, input_device
from unlearn.models.replay import Outputs, owners, recorded, replayed

Result = TypeVar("Result")
Forward = Callable[..., Any]  # called like the model, with the same result


class ModelGroup:
    """A model, and the matrices of each of its members: {full parameter name: tensor}; {} is the model itself.

    Args:
        weights: are copied to the model's device. Names and shapes must be the model's (`check_delta`).
    """

    def __init__(self, model: PreTrainedModel, weights: Iterable[Mapping[str, Tensor]] = ({},)) -> None:
        self.model = model
        self._weights = [{n: _like(w, model.get_parameter(n)) for n, w in matrices.items()} for matrices in weights]
        self._changed = owners(model, {name for matrices in self._weights for name in matrices})
        self.shares = len(self) > 1 and self._check()

    def __len__(self) -> int:
        return len(self._weights)

    @contextmanager
    def use(self, number: int) -> Iterator[None]:
        """Inside the block, the model is this member of the group."""
        parameters = {name: self.model.get_parameter(name) for name in self._weights[number]}
        originals = {name: parameter.data for name, parameter in parameters.items()}
        try:
            for name, parameter in parameters.items():
                parameter.data = self._weights[number][name]
            yield
        finally:
            for name, parameter in parameters.items():
                parameter.data = originals[name]

    def each(self, run: Callable[[Forward], Result], members: Sequence[int]) -> list[Result]:
        """The result of `run` for each of these members.

        `run` calls the `forward` that it is given in place of the model, with inputs that are the same for all members
        but for their own caches. What shall not be shared, it asks of the model itself.
        """
        if len(members) < 2 or not self.shares:
            return [self._alone(run, number) for number in members]
        recording = self._recording()
        results = []
        for i, number in enumerate(members):
            with self.use(number):
                results.append(run(recording.record if i == 0 else recording.replay()))
        return results

    def _recording(self) -> Recording:
        return Recording(self.model, partial(_until, self.model, self._changed))

    def _alone(self, run: Callable[[Forward], Result], number: int) -> Result:
        with self.use(number):
            return run(self.model)

    @torch.inference_mode()
    def _check(self) -> bool:
        """Whether replaying changes nothing, to the bit: with a cache and without, and when it is done twice."""
        ids_BT = torch.arange(2, 10, device=input_device(self.model)).view(2, 4)

        def run(forward: Forward) -> Tensor:
            first = forward(input_ids=ids_BT, use_cache=True)
            second = forward(input_ids=ids_BT, use_cache=True, past_key_values=first.past_key_values)
            third = self.model(input_ids=ids_BT, use_cache=True, past_key_values=second.past_key_values)
            plain = forward(input_ids=ids_BT, use_cache=False)
            return torch.stack([output.logits for output in (first, second, third, plain)])

        members = [0, len(self) - 1, len(self) - 1]
        self.shares = True
        try:
            shared = self.each(run, members)
        except torch.OutOfMemoryError:
            raise
        except (TypeError, ValueError, RuntimeError, AttributeError, LookupError):
            return False
        return all(torch.equal(a, self._alone(run, n)) for a, n in zip(shared, members, strict=True))


class Recording:
    """The forward passes of the group's first member, for the others. Each makes the same calls in the same order.

    Args:
        recorder: a context, inside of which outputs of modules are recorded.
    """

    def __init__(self, model: PreTrainedModel, recorder: Callable[[], AbstractContextManager[Outputs]]) -> None:
        self._model, self._recorder = model, recorder
        self._calls: list[tuple[Outputs, dict[int, Any]]] = []  # and the cache of the layers that are shared

    def record(self, **inputs: Any) -> Any:
        """A forward pass of the first member."""
        with self._recorder() as outputs:
            output = self._model(**inputs)
        self._calls.append((outputs, _cached_layers(outputs, output)))
        return output

    def replay(self) -> Forward:
        """The forward passes of the member in use."""
        calls = iter(self._calls)

        def forward(**inputs: Any) -> Any:
            outputs, cached = next(calls)
            with replayed(self._outputs(outputs)):
                output = self._model(**inputs)
            if cached:
                kept = output.past_key_values.layers
                for number in cached.keys() & set(range(len(kept))):
                    kept[number] = copy.copy(cached[number])
            return output

        return forward

    def _outputs(self, outputs: Outputs) -> Outputs:
        """What the member in use has of the recorded outputs."""
        return outputs


@contextmanager
def _until(model: PreTrainedModel, changed: set[nn.Module]) -> Iterator[Outputs]:
    """Record what runs before `changed`."""
    with recorded(model, changed) as outputs:
        yield outputs
    # The states behind the last whole layer are all that the next one needs.
    whole = [layer for layer in decoder_layers(model) if layer in outputs]
    for layer in whole[:-1]:
        outputs[layer] = outputs[whole[-1]]


def _cached_layers(outputs: Outputs, output: Any) -> dict[int, Any]:
    """The cache of the layers whose attention is recorded. Later steps append to copies, so what is here stays."""
    cache = getattr(output, "past_key_values", None)
    if cache is None:
        return {}
    numbers: set[Any] = {p.layer_idx for module in outputs for p in module.modules() if hasattr(p, "layer_idx")}
    return {number: copy.copy(cache.layers[number]) for number in numbers}


def _like(matrix: Tensor, parameter: Tensor) -> Tensor:
    return torch.empty_like(parameter).copy_(matrix)
