"""Costs counted from a configuration against what torch counts and keeps."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3TextConfig,
    MistralConfig,
    MixtralConfig,
)

from bench.flops import likelihood_step, published_step, training_step
from tests.training.test_loop import SETTINGS
from unlearn.data.batches import batches
from unlearn.data.corpora import Topic
from unlearn.methods import NPO, SimNPO
from unlearn.methods.misdirection_loss import Misdirection
from unlearn.methods.noise import Augmentation
from unlearn.methods.objective import Setup
from unlearn.methods.rmu import RMU
from unlearn.methods.rna import RNA
from unlearn.methods.rsv import RSV
from unlearn.models.cutting import CutModel
from unlearn.training.cost import Shape, likelihood_memory, training_memory
from unlearn.training.loop import train_variants
from unlearn.training.variant import make_variant

LAYER, BATCH, LENGTH = 4, 2, 64
SIZE = {
    "num_hidden_layers": 8, "hidden_size": 64, "intermediate_size": 224, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 500,
}  # fmt: skip
PARTS = {"forget": (BATCH * LENGTH, LENGTH), "retain": (BATCH * LENGTH, LENGTH)}


def counted_step(method, variants):
    """FLOPs that torch counts in one step, attention (counted whole by torch, causal by us) left out."""
    config = MistralConfig(**(SIZE | {"num_hidden_layers": LAYER + 1}))
    cut = CutModel(AutoModel.from_config(config, attn_implementation="sdpa").eval().requires_grad_(False), LAYER)
    objective = Misdirection(
        method,
        {"bio": method.control_vector(64, torch.Generator().manual_seed(0))},
        1.0,
        "padding",
        Augmentation(RNA(0.0), 0),
    )
    return counted(cut, [make_variant(objective, cut.frozen, **SETTINGS) for _ in range(variants)])


def counted(cut, points, **how):
    documents = [[(7 * i + j) % 500 for j in range(LENGTH)] for i in range(BATCH)]
    stream = batches([Topic("bio", documents, documents, {})], steps=1, batch_size=BATCH, pad_id=0, side="right")
    with FlopCounterMode(display=False) as counter:
        train_variants(cut, points, stream, mask_padding=False, **how)
    by_operation = counter.get_flop_counts()["Global"]
    return sum(flops for operation, flops in by_operation.items() if "attention" not in str(operation))


@pytest.mark.parametrize("variants", [1, 3])
@pytest.mark.parametrize(("method", "frozen_forget"), [(RMU(1.0), False), (RSV(1.0), True)])
def test_a_step_costs_what_was_counted(method, frozen_forget, variants):
    """So nothing that could be shared is computed twice."""
    shape = Shape.of(MistralConfig(**SIZE), LAYER)
    expected = training_step(shape, PARTS, variants, frozen_forget=frozen_forget)
    parts = [(tokens, -1) for tokens, _ in PARTS.values()]  # a length of -1: no attention
    expected = training_step(shape, dict(zip(PARTS, parts, strict=True)), variants, frozen_forget=frozen_forget)
    assert counted_step(method, variants) == expected


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("nus", [(0.1,), (0.1, 0.2, 0.2)])
@pytest.mark.parametrize(("method", "reference"), [(NPO(0.1), ["forget"]), (SimNPO(0.1, retain="mse"), [])])
def test_a_step_on_likelihoods_costs_what_was_counted(method, reference, nus, recompute):
    config = MistralConfig(**SIZE)
    cut = CutModel(
        AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval().requires_grad_(False), LAYER
    )
    setup = Setup(["bio"], cut.dim, cut.device, 0, 1.0, "padding")
    methods = [replace(method, rna=RNA(nu)) for nu in nus]
    points = [make_variant(m.objective(setup), cut.frozen, **SETTINGS) for m in methods]
    shape = replace(Shape.of(config, LAYER), attention=0)  # torch counts it whole, we count it causal
    expected = likelihood_step(
        shape,
        PARTS,
        len(nus),
        reference=reference,
        noises=len(set(nus)),
        recompute=recompute,
    )
    assert counted(cut, points, recompute=recompute) == expected


def test_parameters_are_those_of_the_model():
    config = MistralConfig(**SIZE)
    model = AutoModelForCausalLM.from_config(config)
    shape = Shape.of(config, LAYER)
    assert shape.layers * shape.layer_parameters + shape.embeddings + shape.head + 64 == model.num_parameters()
    assert shape.trained == shape.trained_active == 64 * 224
    assert (shape.hidden, shape.attention, shape.intermediate) == (64, 64, 224)


def test_trained_norms_are_stored_and_not_multiplied_and_the_mlp_is_as_wide_as_ever():
    size = MistralConfig(**SIZE)
    norm, both = "input_layernorm.weight", ["input_layernorm.weight", "mlp.down_proj.weight"]
    default, norms, more = (Shape.of(size, LAYER, names) for names in (None, [norm], both))
    assert (norms.trained, norms.trained_active) == (64, 0)
    assert (more.trained, more.trained_active) == (64 + default.trained, default.trained)
    assert norms.intermediate == more.intermediate == default.intermediate
    memory = training_memory(norms, 256, weight_bytes=4, precision="master")
    assert memory.variant == 3 * 3 * 64 * 4


def test_a_mixture_of_experts_multiplies_the_visited_ones_and_stores_all():
    size = SIZE | {"num_local_experts": 4, "num_experts_per_tok": 1}
    dense, mixed = Shape.of(MistralConfig(**SIZE), LAYER), Shape.of(MixtralConfig(**size), LAYER)
    router = 4 * 64
    assert mixed.active == dense.active + router
    assert mixed.trained == 4 * dense.trained
    assert mixed.layer_parameters == dense.layer_parameters + 3 * 3 * 64 * 224 + router


def test_of_a_multimodal_model_the_language_model_counts():
    text = SIZE | {"head_dim": 16}
    config = Gemma3Config(text_config=text, vision_config=SIZE)
    assert Shape.of(config, LAYER) == Shape.of(Gemma3TextConfig(**text), LAYER)
    assert Shape.of(config, LAYER).tied


def test_the_published_step_is_six_times_ours_at_zephyrs_shape():
    zephyr = MistralConfig(
        num_hidden_layers=32, hidden_size=4096, intermediate_size=14336, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=32000,
    )  # fmt: skip
    shape = Shape.of(zephyr, 7)
    parts = {"forget": (2048, 512), "retain": (2048, 512)}
    for frozen_forget, one, fourteen in ((False, 5.4, 11.6), (True, 6.2, 14.4)):
        published = published_step(shape, parts, frozen_forget=frozen_forget)
        assert published / training_step(shape, parts, 1, frozen_forget=frozen_forget) == pytest.approx(one, abs=0.05)
        speedup = 14 * published / training_step(shape, parts, 14, frozen_forget=frozen_forget)
        assert speedup == pytest.approx(fourteen, abs=0.05)


@pytest.mark.parametrize(("precision", "state"), [("master", 4), ("model", 2)])
def test_memory_of_a_variant_is_its_matrices_and_two_moments(precision, state):
    shape = Shape.of(MistralConfig(**SIZE), LAYER)
    memory = training_memory(shape, 256, weight_bytes=2, precision=precision)
    assert memory.variant == 3 * 3 * 64 * 224 * state
    assert memory.weights == 2 * (500 * 64 + 5 * shape.layer_parameters)
    assert memory.variants(memory.total(9)) == 9
    assert memory.variants(memory.total(9) - 1) == 8
    assert memory.variants(0) == 0


def test_what_a_backward_pass_keeps_is_within_what_was_estimated_and_more_than_half_of_it():
    """Bytes that autograd saves in the span, each storage once; the rest is for what is made and freed on the way."""
    config = MistralConfig(**(SIZE | {"num_hidden_layers": LAYER + 1}))
    cut = CutModel(AutoModel.from_config(config).eval().requires_grad_(False), LAYER)
    weights = {n: w.clone().requires_grad_() for n, w in cut.frozen.items()}
    calls = cut.prefix(torch.randint(0, 500, (8, LENGTH)))
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        h_BTD = cut.span(calls, weights)
    h_BTD.sum().backward()
    for outputs in calls[0].recorded.values():
        for output in outputs:
            for tensor in output if isinstance(output, tuple) else (output,):
                if isinstance(tensor, torch.Tensor):
                    pack(tensor)
    memory = training_memory(Shape.of(MistralConfig(**SIZE), LAYER), 8 * LENGTH, weight_bytes=4, precision="master")
    activations = memory.working - sum(w.numel() for w in weights.values()) * 4
    assert 0.5 * activations < sum(kept.values()) < activations


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    ("kernel", "length", "dtype"),
    [("sdpa", 64, torch.float32), ("eager", 256, torch.float32), ("eager", 256, torch.bfloat16)],
)
def test_activations_above_l_are_no_more_than_estimated(kernel, length, dtype, recompute):
    """What autograd keeps of the layers above l, weights left out."""
    config, rows = MistralConfig(**SIZE), 4
    model = AutoModelForCausalLM.from_config(config, attn_implementation=kernel, dtype=dtype)
    cut = CutModel(model.eval().requires_grad_(False), LAYER)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    h_BTD = torch.randn(rows, length, 64, dtype=dtype, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        final_BTD = cut.suffix(h_BTD, torch.randint(0, 500, (rows, length)), recompute=recompute)
    assert final_BTD.requires_grad
    shape = replace(Shape.of(config, LAYER), head=0)
    how = {
        "tokens": rows * length, "pairs": rows * length**2 if kernel == "eager" else 0,
        "weight_bytes": dtype.itemsize, "precision": "master",
    }  # fmt: skip
    estimated = likelihood_memory(shape, **how, recompute=recompute).working - training_memory(shape, **how).working
    assert (0.05 if recompute else 0.5) * estimated < sum(kept.values()) < estimated


@pytest.mark.parametrize(("length", "measured_gb"), [(512, 0.495), (768, 0.893), (2048, 4.40)])
def test_a_layer_of_zephyrs_size_with_eager_attention_keeps_no_more_than_estimated(length, measured_gb):
    """Measured as above, in bfloat16, with four rows of one length."""
    shape = Shape.of(MistralConfig(**SIZE), LAYER)
    shape = replace(shape, hidden=4096, heads=32, attention=4096, intermediate=14336)
    how = {"tokens": 4 * length, "pairs": 4 * length**2, "weight_bytes": 2, "precision": "model", "recompute": False}
    less, more = (likelihood_memory(replace(shape, layers=n), **how).working for n in (8, 9))
    assert 0.7 < measured_gb * 1e9 / (more - less) < 0.85
