"""A model and its first layers: each depth with the model's own final norm and head, as members of a group.

The layers run once for all depths. Only norm and head run for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from transformers import PreTrainedModel

from unlearn.models.architectures import decoder_layers
from unlearn.models.group import Forward, ModelGroup, Recording, Result
from unlearn.models.replay import Outputs


class Depths(ModelGroup):
    """Members are the model without the layers behind each of `last`.

    Args:
        last: numbers of layers, from 0.
    """

    def __init__(self, model: PreTrainedModel, last: Sequence[int]) -> None:
        self.model, self._last = model, list(last)
        self.shares = len(self) > 1 and self._check()

    def __len__(self) -> int:
        return len(self._last)

    @contextmanager
    def use(self, number: int) -> Iterator[None]:
        """Inside the block, the model ends behind this member's last layer."""
        config, layers = self.model.config.get_text_config(), decoder_layers(self.model)
        behind, depth = list(layers[self._last[number] + 1 :]), config.num_hidden_layers
        del layers[self._last[number] + 1 :]
        config.num_hidden_layers = len(layers)
        try:
            yield
        finally:
            layers.extend(behind)
            config.num_hidden_layers = depth

    def each(self, run: Callable[[Forward], Result], members: Sequence[int]) -> list[Result]:
        """See `ModelGroup.each`. The deepest runs first, as it has all that the others need."""
        order = sorted(range(len(members)), key=lambda i: -self._last[members[i]])
        results = dict(zip(order, super().each(run, [members[i] for i in order]), strict=True))
        return [results[i] for i in range(len(members))]

    def _recording(self) -> Recording:
        return _LayerByLayer(self.model, self._recorded)

    @contextmanager
    def _recorded(self) -> Iterator[Outputs]:
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


class _LayerByLayer(Recording):
    def _outputs(self, outputs: Outputs) -> Outputs:
        layers = list(decoder_layers(self._model))
        return dict.fromkeys(layers, outputs[layers[-1]])  # all that norm and head need
