"""Loading to layer l, cutting, replaying: equal to the whole model, to the bit."""

import json

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM

from unlearn.errors import UserError
from unlearn.models.architectures import decoder_layers, parameter_names
from unlearn.models.cutting import CutModel
from unlearn.models.loading import Source, load_config, load_tokenizer, load_up_to, load_whole

IDS_BT = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 10, 11, 12]])


def whole_hidden(model, layer, ids_BT, mask_BT=None):
    return model(input_ids=ids_BT, attention_mask=mask_BT, output_hidden_states=True).hidden_states[layer + 1]


@pytest.mark.parametrize("layer", [2, 4])
def test_cut_equals_whole(tiny_llama, layer):
    expected_BTD = whole_hidden(tiny_llama, layer, IDS_BT)
    cut = CutModel(tiny_llama, layer)
    assert torch.equal(cut.span(cut.prefix(IDS_BT), cut.frozen), expected_BTD)


def test_cut_equals_whole_with_padding_on_the_left(tiny_llama):
    mask_BT = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    expected_BTD = whole_hidden(tiny_llama, 3, IDS_BT, mask_BT)
    cut = CutModel(tiny_llama, 3)
    assert torch.equal(cut.span(cut.prefix(IDS_BT, mask_BT), cut.frozen), expected_BTD)


def test_padding_on_the_right_needs_no_mask(tiny_llama):
    cut = CutModel(tiny_llama, 3)
    alone_BTD = cut.span(cut.prefix(IDS_BT[:1, :3]), cut.frozen)
    padded_BTD = cut.span(cut.prefix(IDS_BT), cut.frozen)
    torch.testing.assert_close(padded_BTD[:1, :3], alone_BTD)


def test_span_with_other_weights_equals_the_model_that_holds_them(tiny_llama):
    cut = CutModel(tiny_llama, 3)
    other = {name: w + 0.1 for name, w in cut.frozen.items()}
    hidden_BTD = cut.span(cut.prefix(IDS_BT), other)
    for name, w in other.items():
        tiny_llama.get_parameter(name).data.copy_(w)
    assert torch.equal(hidden_BTD, whole_hidden(tiny_llama, 3, IDS_BT))


def test_gradients_reach_the_chosen_matrices_only(tiny_llama):
    cut = CutModel(tiny_llama, 3)
    weights = {name: w.clone().requires_grad_() for name, w in cut.frozen.items()}
    cut.span(cut.prefix(IDS_BT), weights).square().sum().backward()
    assert all(w.grad is not None and w.grad.abs().max() > 0 for w in weights.values())
    assert all(p.grad is None for p in tiny_llama.parameters())
    assert list(weights) == [f"model.layers.{i}.mlp.down_proj.weight" for i in (1, 2, 3)]


def test_layers_are_put_back_even_if_the_prefix_fails(tiny_llama):
    cut = CutModel(tiny_llama, 3)
    before = list(decoder_layers(tiny_llama))
    with pytest.raises(IndexError):
        cut.prefix(torch.tensor([[10_000]]))
    assert all(a is b for a, b in zip(decoder_layers(tiny_llama), before, strict=True))


def test_parameters_are_chosen_by_name_and_a_wrong_one_is_answered_with_the_right_ones(tiny_llama):
    layer = decoder_layers(tiny_llama)[0]
    assert parameter_names(layer, None) == ["mlp.down_proj.weight"]
    assert parameter_names(layer, ["mlp.up_proj.weight"]) == ["mlp.up_proj.weight"]
    with pytest.raises(UserError, match=r"no parameter 'mlp.down.weight'.*mlp\.down_proj\.weight"):
        parameter_names(layer, ["mlp.down.weight"])
    with pytest.raises(UserError, match="no MLP down projection of a known name"):
        parameter_names(torch.nn.Linear(2, 2), None)


def test_only_the_layers_up_to_l_are_loaded(tiny_llama, tmp_path):
    tiny_llama.save_pretrained(tmp_path)
    model = load_up_to(Source(str(tmp_path)), 3)
    assert len(decoder_layers(model)) == 4
    assert all(not p.requires_grad for p in model.parameters())
    cut = CutModel(model, 3)
    assert torch.equal(cut.span(cut.prefix(IDS_BT), cut.frozen), whole_hidden(tiny_llama, 3, IDS_BT))
    assert next(iter(cut.frozen)) == "model.layers.1.mlp.down_proj.weight"  # named as in the whole language model


def test_shards_that_hold_only_later_layers_are_not_needed(tiny_llama, tmp_path):
    tiny_llama.save_pretrained(tmp_path, max_shard_size="8KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {
        shard for name, shard in index.items() if not name.startswith(("lm_head", "model.layers.4", "model.layers.5"))
    }
    for shard in set(index.values()) - needed:
        (tmp_path / shard).unlink()
    assert needed < set(index.values())
    cut = CutModel(load_up_to(Source(str(tmp_path)), 3), 3)
    assert torch.equal(cut.span(cut.prefix(IDS_BT), cut.frozen), whole_hidden(tiny_llama, 3, IDS_BT))


def write_gguf(file, layers=6, dim=32, vocabulary=40):
    """A random Llama as llama.cpp stores it."""
    out = gguf.GGUFWriter(file, "llama")
    out.add_block_count(layers)
    out.add_embedding_length(dim)
    out.add_feed_forward_length(2 * dim)
    out.add_head_count(2)
    out.add_head_count_kv(2)
    out.add_context_length(64)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_vocab_size(vocabulary)
    shapes = {"attn_norm": (dim,), "ffn_norm": (dim,), "ffn_gate": (2 * dim, dim), "ffn_up": (2 * dim, dim)}
    shapes |= {"ffn_down": (dim, 2 * dim)} | {f"attn_{part}": (dim, dim) for part in ("q", "k", "v", "output")}
    tensors = {"token_embd": (vocabulary, dim), "output_norm": (dim,), "output": (vocabulary, dim)}
    tensors |= {f"blk.{i}.{name}": shape for i in range(layers) for name, shape in shapes.items()}
    for name, shape in tensors.items():
        out.add_tensor(f"{name}.weight", torch.randn(shape).numpy())
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def test_a_gguf_file_is_cut_too(tmp_path):
    torch.manual_seed(0)
    write_gguf(tmp_path / "model.gguf")
    source = Source(str(tmp_path), gguf_file="model.gguf")
    cut = CutModel(load_up_to(source, 3), 3)
    whole = load_whole(source)
    assert len(decoder_layers(cut.model)) == 4
    assert len(decoder_layers(whole)) == 6
    assert torch.equal(cut.span(cut.prefix(IDS_BT), cut.frozen), whole_hidden(whole, 3, IDS_BT))
    whole.save_pretrained(tmp_path / "exported")  # the whole model is a plain one
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    with torch.no_grad():
        assert torch.equal(again(IDS_BT).logits, whole(IDS_BT).logits)


def test_dtype_and_device_by_default_are_those_of_the_machine(tiny_llama, tmp_path):
    tiny_llama.save_pretrained(tmp_path)
    source = Source(str(tmp_path), device="cpu")
    assert next(load_up_to(source, 3).parameters()).dtype == torch.float32
    assert (
        next(load_up_to(Source(str(tmp_path), device="cpu", dtype="bfloat16"), 3).parameters()).dtype == torch.bfloat16
    )
    assert Source("x", device="cuda").torch_dtype == torch.bfloat16


def test_a_missing_model_is_a_clear_error(tmp_path):
    for load in (load_config, load_tokenizer):
        with pytest.raises(UserError, match=r"model\.path=.*nothing: cannot read a"):
            load(Source(str(tmp_path / "nothing")))


def test_the_saved_whole_model_is_the_one_that_was_cut(tiny_llama, tmp_path):
    """Cutting, running and replaying leave the model as it was."""
    before = {name: p.clone() for name, p in tiny_llama.state_dict().items()}
    cut = CutModel(tiny_llama, 3)
    cut.span(cut.prefix(IDS_BT), {name: w + 1 for name, w in cut.frozen.items()})
    tiny_llama.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(again[name], p) for name, p in before.items())
