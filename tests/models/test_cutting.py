"""Loading to layer l, cutting, replaying: equal to the whole model, to the bit."""

import json
import sys
from dataclasses import replace

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    BartConfig,
    BertConfig,
    Gemma3Config,
    NemotronHConfig,
)

from unlearn.errors import UserError
from unlearn.models.architectures import decoder_layers, parameter_names
from unlearn.models.cutting import CutModel
from unlearn.models.loading import (
    Source,
    _pruned_checkpoint,
    check_weights,
    load_config,
    load_tokenizer,
    load_up_to,
    load_whole,
)

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
    with pytest.raises(UserError, match="no MLP down projection with a known name"):
        parameter_names(torch.nn.Linear(2, 2), None)
    with pytest.raises(UserError, match=r"no layer from 1 to 3 has 'mlp.up\.weight'"):
        CutModel(tiny_llama, 3, parameters=["mlp.up_proj.weight", "mlp.up.weight"])


def test_layers_that_differ_train_those_of_the_chosen_parameters_that_they_have():
    """A model whose layers are attention or an MLP, state space or experts."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "head_dim": 8, "num_attention_heads": 2, "vocab_size": 50}
    config = NemotronHConfig(
        **sizes, num_key_value_heads=1, layers_block_type=["attention", "mlp"] * 3, initializer_range=0.3
    )
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    cut = CutModel(model, 3, parameters=["mixer.down_proj.weight", "mixer.o_proj.weight"])
    assert [name.split(".", 2)[2] for name in cut.frozen] == [
        "1.mixer.down_proj.weight", "2.mixer.o_proj.weight", "3.mixer.down_proj.weight"
    ]  # fmt: skip
    assert torch.equal(cut.span(cut.prefix(IDS_BT), cut.frozen), whole_hidden(model, 3, IDS_BT))
    with pytest.raises(UserError, match=r"no parameter 'mixer.down_proj.weight'.*mixer\.o_proj\.weight"):
        CutModel(model, 3, parameters=["mixer.down_proj.weight"])


def test_a_model_whose_tokens_see_later_ones_is_refused():
    config = BertConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=6, num_attention_heads=2, vocab_size=50)
    with pytest.raises(UserError, match="BertLMHeadModel is not a decoder: states depend on later tokens"):
        CutModel(AutoModelForCausalLM.from_config(config).eval(), 3)


def test_an_encoder_with_a_decoder_is_refused_before_weights_are_loaded(tmp_path):
    BartConfig().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"model\.path=.*: BartConfig describes an encoder and a decoder"):
        load_config(Source(str(tmp_path)))


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


REMOTE = """
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel


class TinyConfig(LlamaConfig):
    model_type = "tiny_remote"


class TinyModel(LlamaModel):
    config_class = TinyConfig


class TinyForCausalLM(LlamaForCausalLM):
    config_class = TinyConfig
"""


def test_a_model_with_code_of_its_own_is_cut_where_that_code_is_trusted(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", [*sys.path])
    folder = tmp_path / "checkpoint"
    tiny_llama.save_pretrained(folder)
    (folder / "remote.py").write_text(REMOTE)
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "TinyConfig", "AutoModel": "TinyModel", "AutoModelForCausalLM": "TinyForCausalLM"}
    config |= {"model_type": "tiny_remote", "auto_map": {auto: f"remote.{name}" for auto, name in classes.items()}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"model\.path=.*contains custom code"):
        load_up_to(Source(str(folder), device="cpu"), 3)
    source = Source(str(folder), device="cpu", trust_remote_code=True)
    cut = CutModel(load_up_to(source, 3), 3)
    assert type(cut.model).__name__ == "TinyModel"
    assert torch.equal(cut.span(cut.prefix(IDS_BT), cut.frozen), whole_hidden(load_whole(source), 3, IDS_BT))


@pytest.fixture
def multimodal(tmp_path):
    """A checkpoint in shards so small that each holds little more than one matrix."""
    torch.manual_seed(0)
    sizes = {"intermediate_size": 32, "num_hidden_layers": 6, "num_attention_heads": 2, "hidden_size": 16}
    text = sizes | {"vocab_size": 50, "num_key_value_heads": 1, "head_dim": 8, "initializer_range": 0.3}
    config = Gemma3Config(
        text_config=text, vision_config=sizes | {"image_size": 8, "patch_size": 4}, tie_word_embeddings=False
    )
    AutoModelForMultimodalLM.from_config(config).save_pretrained(tmp_path, max_shard_size="1KB")
    return tmp_path


def test_of_a_multimodal_checkpoint_neither_tower_nor_head_is_needed_or_kept(multimodal):
    whole = load_whole(Source(str(multimodal), device="cpu"))
    index = json.loads((multimodal / "model.safetensors.index.json").read_text())["weight_map"]
    kinds = (
        "vision_tower.",
        "language_model.lm_head.",
        "language_model.model.layers.4.",
        "language_model.model.layers.5.",
    )
    unneeded = {n for n in index if n.startswith(kinds)}
    assert all(any(n.startswith(kind) for n in unneeded) for kind in kinds)
    for shard in {index[n] for n in unneeded} - {index[n] for n in index.keys() - unneeded}:
        (multimodal / shard).unlink()
    check_weights(Source(str(multimodal)), 3)
    with pytest.raises(UserError, match="weight files are missing"):
        check_weights(Source(str(multimodal)), None)
    cut = CutModel(load_up_to(Source(str(multimodal), device="cpu"), 3), 3)
    assert torch.equal(cut.span(cut.prefix(IDS_BT), cut.frozen), whole_hidden(whole, 3, IDS_BT))
    kept = {name for name, _ in cut.model.named_parameters()}
    assert not kept & {name for name, _ in whole.named_parameters() if "vision_tower" in name or "lm_head" in name}
    assert set(cut.frozen) == {f"model.language_model.layers.{i}.mlp.down_proj.weight" for i in (1, 2, 3)}
    assert set(cut.frozen) <= kept  # named as in the whole model


def test_matrices_that_a_checkpoint_lacks_are_not_drawn_at_random(multimodal):
    file = multimodal / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    name = "language_model.model.layers.2.mlp.up_proj.weight"
    shard = index["weight_map"].pop(name)
    file.write_text(json.dumps(index))
    kept = {n: w for n, w in load_file(multimodal / shard).items() if n != name}
    save_file(kept, multimodal / shard, {"format": "pt"})
    for load in (load_whole, lambda source: load_up_to(source, 3)):
        with pytest.raises(UserError, match=r"lacks model\.language_model\.layers\.2\.mlp\.up_proj\.weight"):
            load(Source(str(multimodal), device="cpu"))


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


def test_the_header_of_a_gguf_file_is_parsed_once_until_the_file_changes(tmp_path, monkeypatch):
    write_gguf(tmp_path / "model.gguf")
    parsed = []
    build = gguf.GGUFReader._build_fields
    monkeypatch.setattr(gguf.GGUFReader, "_build_fields", lambda *args: parsed.append(1) or build(*args))
    source = Source(str(tmp_path), gguf_file="model.gguf", device="cpu", max_memory={"cpu": "1GiB"})
    config = load_config(source)
    config.hidden_size = 7  # as a model that is loaded changes its own
    assert load_config(replace(source, dtype="bfloat16")).hidden_size == 32
    load_whole(source)
    load_up_to(source, 3)
    assert len(parsed) == 1
    write_gguf(tmp_path / "model.gguf", dim=64)
    assert load_config(source).hidden_size == 64
    assert load_whole(source).config.hidden_size == 64
    assert len(parsed) == 2


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
        with pytest.raises(UserError, match=r"model\.path=.*nothing: (there is no such folder|cannot read a)"):
            load(Source(str(tmp_path / "nothing")))


def test_the_saved_whole_model_is_the_one_that_was_cut(tiny_llama, tmp_path):
    """Cutting, running and replaying leave the model as it was."""
    before = {name: p.clone() for name, p in tiny_llama.state_dict().items()}
    cut = CutModel(tiny_llama, 3)
    cut.span(cut.prefix(IDS_BT), {name: w + 1 for name, w in cut.frozen.items()})
    tiny_llama.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(again[name], p) for name, p in before.items())


def test_a_gguf_file_is_not_passed_over_for_shards_beside_it(multimodal, tmp_path):
    source, scratch = Source(str(multimodal), device="cpu"), tmp_path / "scratch"
    scratch.mkdir()
    assert _pruned_checkpoint(source, 3, scratch) == str(scratch)
    assert _pruned_checkpoint(replace(source, gguf_file="model.gguf"), 3, scratch) == source.path


def test_a_model_whose_states_are_not_finite_is_refused_by_what_is_wrong(tiny_llama):
    tiny_llama.model.layers[2].mlp.down_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(UserError, match=r"states of LlamaForCausalLM at layer 3 are not finite .* weights are damaged"):
        CutModel(tiny_llama, 3)
