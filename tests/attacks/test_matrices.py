"""Matrices that lie otherwise than Llama's: transposed ones, and experts that are one tensor."""

import pytest
import torch
from transformers import (
    FalconConfig,
    GPT2Config,
    GptOssConfig,
    GraniteMoeConfig,
    Llama4TextConfig,
    MambaConfig,
    MixtralConfig,
    Qwen3MoeConfig,
)

from tests.attacks.test_attacks import same, state, target_of
from unlearn.attacks.matrices import weight_matrices
from unlearn.attacks.pruning import Pruning
from unlearn.attacks.quantization import Quantization, quantised_share, quantized
from unlearn.attacks.relearning import Relearning, adapters
from unlearn.models.architectures import auto_class, decoder_layers

SIZES = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 16}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 4, "pad_token_id": 0}
CONFIGS = {
    "gpt2": GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=2),
    "mixtral": MixtralConfig(**SIZES, **HEADS),
    "gpt_oss": GptOssConfig(**SIZES, **HEADS, layer_types=["full_attention"] * 2),
    "llama4": Llama4TextConfig(**SIZES, **HEADS, intermediate_size_mlp=48, layer_types=["full_attention"] * 2),
    "granite_moe": GraniteMoeConfig(**{k: v for k, v in SIZES.items() if k != "head_dim"}, **HEADS),
    "qwen3_moe": Qwen3MoeConfig(**SIZES, **HEADS, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=48),
}
OUTPUTS_LAST = {"gpt2": "mlp.c_fc.weight", "gpt_oss": "experts.gate_up_proj", "llama4": "experts.gate_up_proj"}
IDS_BT = torch.tensor([[3, 4, 5, 6, 7]])


@pytest.fixture(params=CONFIGS)
def family(request):
    return request.param


def random_model(config):
    torch.manual_seed(0)
    model = auto_class(config).from_config(config).eval().requires_grad_(False)
    for parameter in model.parameters():  # transformers leaves some experts empty
        parameter.normal_(0, 0.1)
    return model


@pytest.fixture
def model(family):
    return random_model(CONFIGS[family])


def test_pruning_takes_the_same_share_of_every_outputs_weights(family, model):
    before = state(model)
    wanted = OUTPUTS_LAST.get(family, "experts.gate_up_proj")
    [name, *_] = [name for name in weight_matrices(model) if name.endswith(wanted)]
    inputs = -2 if family in OUTPUTS_LAST else -1
    for _ in Pruning([0.5]).stages(target_of(model)):
        zeros = (model.get_parameter(name) == 0).float().mean(dim=inputs)
    assert torch.all(zeros == 0.5)
    assert same(model, before)


def test_adapters_reach_experts_and_no_router_breaks(family, model):
    before, plain = state(model), model(IDS_BT).logits
    with adapters(model, 2, seed=0) as trained:
        output = model(input_ids=IDS_BT, attention_mask=torch.ones_like(IDS_BT), labels=IDS_BT, use_cache=False)
        output.loss.backward()
        moved = [n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
        assert len(trained) > len(moved) > 0  # the second factor starts at zero, so the first gets no gradient yet
    assert any("experts" in name for name in moved) is (family != "gpt2")
    assert same(model, before)
    assert torch.equal(model(IDS_BT).logits, plain)


def test_quantisation_says_what_it_reaches_and_is_left_out_if_that_is_nothing_that_was_trained(family, model):
    trained = [name for name in weight_matrices(model) if name.endswith(("experts.down_proj", "mlp.c_proj.weight"))]
    attack = Quantization([8], "nf4")
    assert trained
    obstacle = attack.obstacle(target_of(model, trained=trained))
    if family == "gpt2":
        assert "no torch.nn.Linear" in obstacle
        return
    share = quantised_share(model)
    assert 0 < share < 0.6
    reached = f"and 0 of the {len(trained)} matrices that unlearning changed"
    assert reached in attack.remark(target_of(model, trained=trained))
    assert f"would quantise {share:.0%} of the decoder layers' weights, and none of the matrices" in obstacle
    assert f"quantises {share:.0%}" in attack.remark(target_of(model, trained=trained))
    attention = [name for name in weight_matrices(model) if name.endswith("o_proj.weight")]
    assert attack.obstacle(target_of(model, trained=attention)) is None


def test_linear_modules_of_a_class_of_their_own_are_reached_as_well():
    """Falcon's compute what nn.Linear does."""
    model = random_model(FalconConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2))
    before = state(model)
    assert quantised_share(model) == 1
    assert Quantization([8], "nf4").obstacle(target_of(model)) is None
    with adapters(model, 2, seed=0) as trained:
        assert len(trained) == 2 * 2 * 4
    with quantized(model, 8):
        assert type(decoder_layers(model)[0].mlp.dense_h_to_4h).__name__ == "Linear8bitLt"
    assert same(model, before)


MAMBA = MambaConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, state_size=4)


def test_what_peft_does_not_take_is_said():
    model = random_model(MAMBA)
    with adapters(model, 2, seed=0) as trained:
        assert len(trained) == 2 * 2 * 3
    attack = Relearning([1], parameters="lora")
    assert "of the decoder layers' weights" in attack.remark(target_of(model))
    assert attack.remark(target_of(random_model(CONFIGS["gpt_oss"]))) is None


def test_decay_rates_and_norms_are_no_matrices():
    assert {name.rpartition("mixer.")[2] for name in weight_matrices(random_model(MAMBA))} == {
        "in_proj.weight", "x_proj.weight", "dt_proj.weight", "out_proj.weight", "conv1d.weight",
    }  # fmt: skip


def test_a_part_of_the_trained_matrices_that_is_quantised_is_counted():
    """Llama 4 may have experts in every second layer."""
    layers = {"intermediate_size_mlp": 48, "layer_types": ["full_attention"] * 2, "interleave_moe_layer_step": 2}
    model = random_model(Llama4TextConfig(**SIZES, **HEADS, **layers))
    trained = [name for name in weight_matrices(model) if "down_proj" in name and "shared" not in name]
    attack, target = Quantization([8], "nf4"), target_of(model, trained=trained)
    assert len(trained) == 2
    assert attack.obstacle(target) is None
    assert "and 1 of the 2 matrices that unlearning changed" in attack.remark(target)
