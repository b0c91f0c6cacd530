"""The library's kernels compute in place of the decoder layers' linear modules. Then all is as before."""

import logging

import pytest
import torch
from bitsandbytes.functional import get_4bit_type
from bitsandbytes.nn import Linear4bit, Linear8bitLt

from tests.attacks.test_attacks import SOURCE, accuracy, same, state, target_of
from unlearn.attacks import quantization
from unlearn.attacks.make import plan
from unlearn.attacks.matrices import weight_matrices
from unlearn.attacks.quantization import Quantization, quantized
from unlearn.attacks.run import _possible
from unlearn.errors import UserError
from unlearn.models.architectures import decoder_layers
from unlearn.models.loading import load_whole

IDS_BT = torch.tensor([[3, 4, 5, 6, 7]])


def on_levels(weight, bits):
    """Weights that quantisation leaves as they are: 8 bits have even levels in each row, nf4 its own in each block."""
    if bits == 8:
        weight.copy_(torch.randint(-120, 121, weight.shape) * 0.01)
        weight[:, 0] = 1.27
    else:
        weight.copy_(get_4bit_type("nf4", device="cpu")[torch.randint(1, 15, weight.shape)])
        weight.view(-1)[::16] = 1


@pytest.mark.parametrize("bits", [8, 4])
@torch.no_grad()
def test_a_change_below_half_a_level_is_undone(tiny_llama, bits):
    for weight in weight_matrices(tiny_llama).values():
        on_levels(weight, bits)
    plain = tiny_llama(IDS_BT).logits
    with quantized(tiny_llama, bits):
        expected = tiny_llama(IDS_BT).logits
    for weight in weight_matrices(tiny_llama).values():
        weight.add_(0.004 * (weight.abs() < 1))
    hidden = state(tiny_llama)
    assert (tiny_llama(IDS_BT).logits - plain).abs().max() > 1e-3
    with quantized(tiny_llama, bits):
        assert torch.equal(tiny_llama(IDS_BT).logits, expected)
    torch.testing.assert_close(expected, plain, rtol=0.1, atol=0.1)
    assert same(tiny_llama, hidden)


def test_a_model_answers_as_before_with_the_librarys_modules(asked):
    model = load_whole(SOURCE)
    before, at_bits = state(model), {}
    for bits in Quantization([8, 4], "fp4").stages(target_of(model)):
        kinds = {type(m) for m in decoder_layers(model).modules() if isinstance(m, torch.nn.Linear)}
        at_bits[bits] = (kinds, accuracy(model, asked))
    assert at_bits[8][0] == {Linear8bitLt}
    assert at_bits[4][0] == {Linear4bit}
    assert min(score for _, score in at_bits.values()) > 0.9
    assert same(model, before)


def test_a_stage_that_is_left_or_fails_restores_the_model(tiny_llama, monkeypatch):
    before, quantise = state(tiny_llama), quantization._quantized
    stages = Quantization([8, 4], "nf4").stages(target_of(tiny_llama))
    next(stages)
    stages.close()
    assert same(tiny_llama, before)
    made = []

    def fails_at_the_third(*how):
        made.append(quantise(*how))
        if len(made) == 3:
            raise torch.OutOfMemoryError
        return made[-1]

    monkeypatch.setattr(quantization, "_quantized", fails_at_the_third)
    with pytest.raises(torch.OutOfMemoryError), quantized(tiny_llama, 8):
        pass
    assert same(tiny_llama, before)


def test_without_the_library_it_is_left_out(tiny_llama, monkeypatch):
    """A mock of its absence."""
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"attack=quantization: it needs bitsandbytes \(pip install"):
        _possible(plan(["quantization"], []), target_of(tiny_llama))


def test_the_library_says_nothing_of_kernels_that_nothing_uses():
    """It warns when it is imported, on a CPU with bfloat16."""
    assert not logging.getLogger("bitsandbytes.backends.cpu.ops").isEnabledFor(logging.WARNING)
