"""A model and its first layers: the layers run once, and each depth says what the model says that ends there."""

from contextlib import suppress

import torch

from unlearn.models.architectures import decoder_layers
from unlearn.models.depths import Depths

IDS_BT = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 10, 11, 12]])


def ended(model, last):
    """Logits of the model without the layers behind `last`."""
    states = model.model(IDS_BT, output_hidden_states=True).hidden_states
    end = states[last + 1] if last + 1 == len(decoder_layers(model)) else model.model.norm(states[last + 1])
    return model.lm_head(end)


def test_each_depth_says_what_the_model_says_that_ends_there(tiny_llama):
    last = [5, 4, 2, 0]
    group = Depths(tiny_llama, last)
    assert group.shares
    ran = []
    for layer in decoder_layers(tiny_llama):
        layer.mlp.register_forward_hook(lambda *_: ran.append(1))
    for numbers in ([0, 1, 2, 3], [1, 3], [3], []):
        ran.clear()
        outputs = list(group.outputs(numbers, input_ids=IDS_BT, use_cache=False))
        assert len(ran) == (last[numbers[0]] + 1 if numbers else 0)  # once for all
        for number, output in zip(numbers, outputs, strict=True):
            with torch.no_grad():
                torch.testing.assert_close(output.logits, ended(tiny_llama, last[number]))


def test_the_model_is_whole_again_afterwards(tiny_llama):
    layers = list(decoder_layers(tiny_llama))
    group = Depths(tiny_llama, [3, 1])
    with suppress(RuntimeError), group.use(1):
        assert list(decoder_layers(tiny_llama)) == layers[:2]
        raise RuntimeError("inside")
    assert list(decoder_layers(tiny_llama)) == layers
    assert tiny_llama.config.num_hidden_layers == 6
