"""Several models that differ in a few matrices: one model in memory, with the matrices of each in turn.

The modules before the first of these matrices run once for all members (see `unlearn.models.replay`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from unlearn.models.architectures import decoder_layers, input_device
from unlearn.models.replay import Outputs, owners, recorded, replayed


class ModelGroup:
    """A model, and the matrices of each of its members: {full parameter name: tensor}; {} is the model itself.

    Args:
        weights: each member's matrices, which are copied to the model's device. `check_delta` checks names and shapes.
    """

    def __init__(self, model: PreTrainedModel, weights: Iterable[Mapping[str, Tensor]] = ({},)) -> None:
        self.model = model
        self._weights = [{n: _like(w, model.get_parameter(n)) for n, w in matrices.items()} for matrices in weights]
        self._changed = owners(model, {name for matrices in self._weights for name in matrices})
        self.shares = False
        self.shares = len(self) > 1 and self._can_share()

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

    def outputs(self, members: Sequence[int], **inputs: Any) -> Iterator[Any]:
        """Yield each of these members' output for the same inputs. `inputs` must not use a cache."""
        recording: Outputs | None = None
        for number in members:
            with self.use(number):
                if recording is not None:
                    with replayed(self._for_member(recording)):
                        output = self.model(**inputs)
                elif self.shares and len(members) > 1:
                    with self._recorded() as recording:
                        output = self.model(**inputs)
                else:
                    output = self.model(**inputs)
            yield output

    @contextmanager
    def _recorded(self) -> Iterator[Outputs]:
        """Record what runs before the first changed matrix."""
        with recorded(self.model, self._changed) as outputs:
            yield outputs
        # The layer after the last recorded one needs only that one's output.
        whole = [layer for layer in decoder_layers(self.model) if layer in outputs]
        for layer in whole[:-1]:
            outputs[layer] = outputs[whole[-1]]

    def _for_member(self, recording: Outputs) -> Outputs:
        """The recorded outputs that the member in use replays."""
        return recording

    @torch.inference_mode()
    def _can_share(self) -> bool:
        """Whether a replay, and a second one, give the same logits to the bit."""
        ids_BT = torch.arange(2, 10, device=input_device(self.model)).view(2, 4)
        members = [0, len(self) - 1, len(self) - 1]
        alone = [output.logits for n in members for output in self.outputs([n], input_ids=ids_BT, use_cache=False)]
        self.shares = True
        try:
            together = [output.logits for output in self.outputs(members, input_ids=ids_BT, use_cache=False)]
        except torch.OutOfMemoryError:
            raise
        except (TypeError, ValueError, RuntimeError, AttributeError, LookupError):
            return False
        return all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def _like(matrix: Tensor, parameter: Tensor) -> Tensor:
    return torch.empty_like(parameter).copy_(matrix)
