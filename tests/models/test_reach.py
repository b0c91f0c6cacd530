"""How far trained matrices can move a layer's states: bounded where a norm follows them."""

import math

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Olmo2Config,
    Olmo2ForCausalLM,
)

from unlearn.models.cutting import CutModel

SIZES = {
    "vocab_size": 40, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2,
    "num_key_value_heads": 2,
}  # fmt: skip
IDS_BT = torch.arange(1, 21)[None]
NORMALISED = [
    (Gemma2ForCausalLM, Gemma2Config(**SIZES, head_dim=16), "post_feedforward_layernorm", 1.0),
    (Gemma3ForCausalLM, Gemma3TextConfig(**SIZES, head_dim=16), "post_feedforward_layernorm", 1.0),
    (Olmo2ForCausalLM, Olmo2Config(**SIZES), "post_feedforward_layernorm", 0.0),  # its gain is the weight itself
]


@pytest.mark.parametrize(("cls", "config", "norm", "added"), NORMALISED)
def test_a_norm_behind_the_matrix_bounds_what_it_can_add(cls, config, norm, added):
    torch.manual_seed(0)
    cut = CutModel(cls(config), 3)
    weight = cut.model.model.layers[3].get_submodule(norm).weight
    for gain in (2.0, 6.0):
        torch.nn.init.constant_(weight, gain - added)
        assert math.isclose(cut.reach(IDS_BT), gain * math.sqrt(32), rel_tol=1e-3)  # RMS 1 in each of 32 coordinates


def test_without_a_norm_nothing_bounds_it(tiny_llama):
    assert CutModel(tiny_llama, 3).reach(IDS_BT % 32) is None
