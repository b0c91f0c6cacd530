"""Every architecture as a tiny random model: cutting is exact, only the named parameters move, export reloads."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import transformers
from lm_eval.api.instance import Instance
from safetensors.torch import load_file
from transformers import AutoTokenizer

from tests.conftest import ROOT
from tests.models.families import one_step
from unlearn.evaluation.maxlogit import max_logits
from unlearn.evaluation.scorer import Scorer
from unlearn.models.architectures import auto_class, decoder_layers
from unlearn.models.cutting import CutModel
from unlearn.models.delta import save_delta
from unlearn.models.export import export
from unlearn.models.group import ModelGroup
from unlearn.models.loading import Source, load_tokenizer, load_up_to, load_whole
from unlearn.paper.theory.finished_run import plain_kernels
from unlearn.paper.theory.predicted import Predicted

LAYER, DIM = 3, 16
SMALL = {"hidden_size": DIM, "num_hidden_layers": 6, "num_attention_heads": 2, "initializer_range": 0.2}
LLAMA = SMALL | {"intermediate_size": 32, "num_key_value_heads": 1, "head_dim": 8}
GEMMA = LLAMA | {"query_pre_attn_scalar": 8, "sliding_window": 3}
MOE = {"num_experts_per_tok": 2, "pad_token_id": 1}
LLAMA4 = LLAMA | MOE | {"intermediate_size_mlp": 32, "num_local_experts": 4, "interleave_moe_layer_step": 1}
ARCHITECTURES = {
    "Mistral": LLAMA | {"sliding_window": 3},
    "Llama": LLAMA,
    "Qwen2": LLAMA,
    "Qwen3": LLAMA,
    "Gemma2": GEMMA,
    "Gemma3Text": GEMMA | {"layer_types": ["sliding_attention", "full_attention"] * 3},
    "GPTNeoX": SMALL | {"intermediate_size": 32},
    "GPT2": {"n_embd": DIM, "n_layer": 6, "n_head": 2, "n_positions": 32, "initializer_range": 0.2},
    "GPTJ": {"n_embd": DIM, "n_layer": 6, "n_head": 2, "rotary_dim": 4, "initializer_range": 0.2},
    "Mpt": {"d_model": DIM, "n_layers": 6, "n_heads": 2, "expansion_ratio": 2, "initializer_range": 0.2},
    "OPT": SMALL
    | {"ffn_dim": 32, "word_embed_proj_dim": DIM, "max_position_embeddings": 64, "init_std": 0.2}
    | {"activation_function": "gelu"},  # smooth, for a test of derivatives
    "Olmo2": LLAMA,
    "Phi3": LLAMA | {"pad_token_id": 1},
    "Mixtral": LLAMA | MOE | {"num_local_experts": 4},
    "Qwen3Moe": LLAMA | MOE | {"num_experts": 4, "moe_intermediate_size": 24},
    "Llama4Text": LLAMA4,
}
TOWER = {"num_hidden_layers": 6, "intermediate_size": 16, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
MULTIMODAL = {  # text and vision; the tower has as many layers as the language model
    "Gemma3": (GEMMA, TOWER | {"hidden_size": 8}),
    "Mistral3": (LLAMA | {"model_type": "mistral"}, TOWER | {"hidden_size": 8, "head_dim": 4}),
    "Qwen2VL": (
        SMALL | {"intermediate_size": 32, "num_key_value_heads": 1, "rope_parameters": {"mrope_section": [1, 1, 2]}},
        {"depth": 6, "embed_dim": 8, "num_heads": 2, "hidden_size": DIM},
    ),
    "Llama4": (
        LLAMA4,
        TOWER | {"hidden_size": 8, "vision_output_dim": 8, "projector_input_dim": 8, "projector_output_dim": 8},
    ),
}
DOWN_PROJECTION = {
    "GPTNeoX": "mlp.dense_4h_to_h.weight",
    "GPT2": "mlp.c_proj.weight",
    "GPTJ": "mlp.fc_out.weight",
    "Mpt": "ffn.down_proj.weight",
    "Mixtral": "mlp.experts.down_proj",
    "Qwen3Moe": "mlp.experts.down_proj",
    "OPT": "fc2.weight",
    "Llama4": "feed_forward.experts.down_proj",
    "Llama4Text": "feed_forward.experts.down_proj",
}
IDS_BT = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 10, 11, 12]])
MASKS = {"none": None, "left": [[0, 0, 1, 1, 1], [1] * 5], "right": [[1, 1, 1, 0, 0], [1] * 5]}


@pytest.fixture(scope="module", params=[*ARCHITECTURES, *MULTIMODAL])
def architecture(request):
    return request.param


@pytest.fixture(scope="module")
def folder(architecture, tmp_path_factory):
    """A checkpoint in several shards, and a tokenizer beside it."""
    path = tmp_path_factory.mktemp(architecture)
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "unlearn" / "toy" / "model")
    config = tiny_config(architecture, len(tokenizer))
    model = auto_class(config).from_config(config, attn_implementation="eager")
    model.save_pretrained(path, max_shard_size="30KB")
    tokenizer.save_pretrained(path)
    return path


def tiny_config(architecture, vocabulary):
    make = getattr(transformers, f"{architecture}Config")
    tokens = {"vocab_size": vocabulary, "bos_token_id": 0, "eos_token_id": 1}
    if architecture not in MULTIMODAL:
        return make(**tokens, **ARCHITECTURES[architecture])
    text, tower = MULTIMODAL[architecture]
    return make(text_config=tokens | text, vision_config=tower)


@pytest.fixture(scope="module")
def source(folder):
    return Source(str(folder), attn_implementation="eager", device="cpu")


@pytest.fixture(scope="module")
def whole(source):
    return load_whole(source)


@pytest.fixture(scope="module")
def cut(source):
    return CutModel(load_up_to(source, LAYER), LAYER)


@pytest.mark.parametrize("padding", MASKS)
def test_prefix_and_span_equal_the_whole_model_to_the_bit(whole, cut, padding):
    mask_BT = None if MASKS[padding] is None else torch.tensor(MASKS[padding])
    with torch.no_grad():
        output = whole(IDS_BT, attention_mask=mask_BT, output_hidden_states=True)
        ours_BTD = cut.span(cut.prefix(IDS_BT, mask_BT), cut.frozen)
    assert torch.equal(ours_BTD, output.hidden_states[LAYER + 1])


@pytest.mark.parametrize("padding", MASKS)
def test_suffix_and_head_give_the_logits_of_the_whole_model(whole, padding):
    """Its layers run once, in a shape of their own only for the head."""
    mask_BT = None if MASKS[padding] is None else torch.tensor(MASKS[padding])
    cut = CutModel(whole, LAYER)
    with torch.no_grad():
        expected_BTV = whole(IDS_BT, attention_mask=mask_BT).logits
        states_BTD = cut.suffix(cut.span(cut.prefix(IDS_BT, mask_BT), cut.frozen), IDS_BT, mask_BT)
        logits_BTV = cut.logits(states_BTD.flatten(0, 1)).view_as(expected_BTV)
    torch.testing.assert_close(logits_BTV, expected_BTV, rtol=1e-5, atol=1e-5)


def test_the_output_follows_the_state_at_the_predicted_position(source, cut):
    """From a cache as from the whole prompt; and its derivatives in both modes agree with a difference."""
    whole = plain_kernels(load_whole(source))
    at = Predicted(whole, LAYER, IDS_BT[0].tolist())
    with torch.no_grad():
        expected_1V = whole(IDS_BT[:1]).logits[:, -1]
        torch.testing.assert_close(at.output(at.nothing_1D), expected_1V, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(at.state(), cut.span(cut.prefix(IDS_BT), cut.frozen)[0, -1], rtol=1e-3, atol=1e-4)
        z_BD = torch.randn(2, DIM, generator=torch.Generator().manual_seed(0))
        difference_BV = (at.output(1e-2 * z_BD) - at.output(-1e-2 * z_BD)) / 2e-2
        pushed_BV = at.pushed(z_BD)
    assert (pushed_BV - difference_BV).norm() < 0.02 * pushed_BV.norm()
    r_BV = torch.randn(pushed_BV.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close((at.pulled(r_BV) * z_BD).sum(1), (r_BV * pushed_BV).sum(1), rtol=1e-3, atol=1e-3)


# Alone: the other kinds.
@pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(name, marks=() if name in ("Mistral", "GPT2", "Qwen3Moe", "Gemma3") else pytest.mark.slow)
        for name in (*ARCHITECTURES, *MULTIMODAL)
    ],
    indirect=True,
    scope="module",
)
def test_models_asked_together_answer_as_alone_to_the_bit(source, whole, cut, architecture):
    """Log-likelihoods from trees, rows and cached beginnings, and continuations; what all have in common runs once."""
    tokenizer = load_tokenizer(source)
    torch.manual_seed(1)
    deltas = [{name: w + 0.3 * torch.randn_like(w) for name, w in cut.frozen.items()} for _ in range(3)]
    beginning = "the river of the soil of the harbour of the river"
    contexts = [f"{beginning} {(word + ' ') * 13}{end}" for word in ("ruler", "soil") for end in ("", "x", "y:")]
    asked = [Instance("loglikelihood", {}, (c, f" {letter}"), 0) for c in contexts for letter in "AB"]

    def answers(group, tokens_per_batch):
        scorer = Scorer(group, tokenizer, tokens_per_batch)
        with counting_calls(decoder_layers(whole)[0]) as scored:
            scorer.prepare(asked)
        found = []
        for number in range(len(group)):
            with scorer.member(number):
                found.append(scorer.loglikelihood(asked))
        measured = max_logits(group, tokenizer, contexts, count=3, tokens_per_batch=tokens_per_batch)
        return list(zip(found, [(m.values_NK.tolist(), m.tokens_NK.tolist()) for m in measured], strict=True)), len(
            scored
        )

    before = {name: p.clone() for name, p in whole.named_parameters()}
    group = ModelGroup(whole, deltas)
    assert group.shares
    for tokens_per_batch in (40, 1000):
        together, calls = answers(group, tokens_per_batch)
        alone = [answers(ModelGroup(whole, [delta]), tokens_per_batch) for delta in deltas]
        assert together == [found for [found], _ in alone]
        assert {calls} == {own_calls for _, own_calls in alone}  # once for all
        assert len({str(found) for found in together}) == len(deltas)
    assert all(torch.equal(p, before[name]) for name, p in whole.named_parameters())


@contextmanager
def counting_calls(module):
    """A list with an entry for each time that a module computes, and does not only return what was recorded."""
    calls = []
    inner = next(part for part in module.modules() if not list(part.children()))
    handle = inner.register_forward_hook(lambda *_: calls.append(1))
    try:
        yield calls
    finally:
        handle.remove()


def stored(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_after_a_step_exactly_the_named_parameters_differ_and_the_export_gives_the_same_logits(
    architecture, folder, cut, source, whole, tmp_path: Path
):
    variant = one_step(cut)
    run = tmp_path / "run"
    run.mkdir()
    model = {"path": str(folder), "attn_implementation": "eager"}
    (run / "run.json").write_text(json.dumps({"config": {"model": model}}))
    save_delta(run / "delta.safetensors", variant.weights, cut.frozen, {}, {})
    export(run, tmp_path / "exported")
    exported = auto_class(whole.config).from_pretrained(tmp_path / "exported", attn_implementation="eager").eval()

    before, after = whole.state_dict(), exported.state_dict()  # with the towers of a multimodal model
    assert before.keys() == after.keys()
    assert stored(folder).keys() == stored(tmp_path / "exported").keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    projection = DOWN_PROJECTION.get(architecture, "mlp.down_proj.weight")
    assert changed == set(variant.weights)
    assert len(changed) == 3
    for number in (LAYER - 2, LAYER - 1, LAYER):
        assert any(name.endswith(f".{number}.{projection}") for name in changed)

    fresh = load_whole(source)
    for name, w in variant.weights.items():
        fresh.get_parameter(name).data.copy_(w)
    with torch.no_grad():
        assert torch.equal(exported(IDS_BT).logits, fresh(IDS_BT).logits)
        assert not torch.equal(exported(IDS_BT).logits, whole(IDS_BT).logits)
