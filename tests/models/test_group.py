"""Models in turn, in one model's memory. That they answer as alone is shown in test_architectures.py, for each."""

from contextlib import suppress

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from unlearn.models.architectures import decoder_layers
from unlearn.models.group import ModelGroup

NAMES = [f"model.layers.{i}.mlp.down_proj.weight" for i in (2, 3)]
IDS_BT = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 10, 11, 12]])


def changed(model, names=NAMES, count=2):
    torch.manual_seed(1)
    return [{n: model.get_parameter(n) + torch.randn_like(model.get_parameter(n)) for n in names} for _ in range(count)]


def logits(group, numbers):
    return [output.logits for output in group.outputs(numbers, input_ids=IDS_BT, use_cache=False)]


def test_the_model_is_itself_again_afterwards(tiny_llama):
    before = {name: p.clone() for name, p in tiny_llama.named_parameters()}
    deltas = changed(tiny_llama)
    group = ModelGroup(tiny_llama, [{}, *deltas])
    for number, weights in enumerate([{}, *deltas]):
        expected = before | weights
        with suppress(RuntimeError), group.use(number):
            assert all(torch.equal(p, expected[name]) for name, p in tiny_llama.named_parameters())
            raise RuntimeError("inside")
    assert all(torch.equal(p, before[name]) for name, p in tiny_llama.named_parameters())


def test_any_members_in_any_order(tiny_llama):
    group = ModelGroup(tiny_llama, changed(tiny_llama, count=3))
    assert group.shares
    every = [logits(group, [number])[0] for number in range(3)]
    for numbers in ([0, 1, 2], [2, 0], [1], []):
        assert all(torch.equal(a, every[n]) for a, n in zip(logits(group, numbers), numbers, strict=True))


def test_nothing_is_shared_where_a_replay_would_be_wrong(tiny_llama):
    """The embedding is the head: it changes although it comes before the first changed module."""
    config = tiny_llama.config
    config.tie_word_embeddings = True
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    deltas = changed(model, ["lm_head.weight"])
    group = ModelGroup(model, deltas)
    assert not group.shares
    for found, delta in zip(logits(group, [0, 1]), deltas, strict=True):
        with torch.no_grad():
            model.lm_head.weight.copy_(delta["lm_head.weight"])
        assert torch.equal(found, model(input_ids=IDS_BT).logits)


def test_nothing_is_shared_by_a_model_that_does_not_repeat_itself(tiny_llama):
    class Random(nn.Module):
        def forward(self, hidden_BTD, *args, **kwargs):
            return hidden_BTD + torch.rand(())  # another value at each call

    decoder_layers(tiny_llama)[4] = Random()
    assert not ModelGroup(tiny_llama, changed(tiny_llama)).shares
