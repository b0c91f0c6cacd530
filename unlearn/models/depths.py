"""A model cut off after several layers, each time followed by the model's final norm and head, as members of a group.

The layers run once for all depths. Only norm and head run once per depth.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from transformers import PreTrainedModel

from unlearn.models.architectures import decoder_layers
from unlearn.models.group import ModelGroup
from unlearn.models.replay import Outputs


class Depths(ModelGroup):
    """Each member is the model without the layers after one of `last`.

    Args:
        last: numbers of layers, from 0, the deepest first: its outputs include those of the others.
    """

    def __init__(self, model: PreTrainedModel, last: Sequence[int]) -> None:
        assert list(last) == sorted(last, reverse=True)
        self.model, self._last, self.shares = model, list(last), False
        self.shares = len(self) > 1 and self._can_share()

    def __len__(self) -> int:
        return len(self._last)

    @contextmanager
    def use(self, number: int) -> Iterator[None]:
        """Inside the block, the model ends after this member's last layer."""
        config, layers = self.model.config.get_text_config(), decoder_layers(self.model)
        removed, depth = list(layers[self._last[number] + 1 :]), config.num_hidden_layers
        del layers[self._last[number] + 1 :]
        config.num_hidden_layers = len(layers)
        try:
            yield
        finally:
            layers.extend(removed)
            config.num_hidden_layers = depth

    @contextmanager
    def _recorded(self) -> Iterator[Outputs]:
        """Record the output of every layer."""
        outputs: Outputs = {}
        hooks = [
            layer.register_forward_hook(lambda layer, _, output: outputs.setdefault(layer, []).append(output))
            for layer in decoder_layers(self.model)
        ]
        try:
            yield outputs
        finally:
            for hook in hooks:
                hook.remove()

    def _for_member(self, recording: Outputs) -> Outputs:
        """Let every layer return the last layer's output, which is all that norm and head need."""
        layers = list(decoder_layers(self.model))
        return dict.fromkeys(layers, recording[layers[-1]])
