"""model.compile=true: the same results but for rounding, from the first step of training to the last question."""

import math

import pytest
import torch
from torch._dynamo.utils import counters

from tests.conftest import ROOT, read_jsonl, read_metrics
from unlearn.experiment import run
from unlearn.models.architectures import decoder_layers
from unlearn.models.cutting import CutModel
from unlearn.models.loading import Source, load_up_to, load_whole

TOY = str(ROOT / "unlearn/toy/model")
IDS_BT = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 10, 11, 12]])


def test_norms_rotary_embeddings_and_gated_activations_are_compiled_and_nothing_else():
    fused = {
        n for n, m in decoder_layers(load_whole(Source(TOY, compile=True))).named_modules() if "forward" in vars(m)
    }
    expected = {
        f"{layer}.{part}"
        for layer in range(8)
        for part in ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")
    }
    assert fused == expected
    assert not any("forward" in vars(module) for module in load_whole(Source(TOY)).modules())


def test_other_models_of_the_process_are_not_compiled():
    """Nor is what they share with a fused one: the functions of its module."""
    plain = load_whole(Source(TOY))
    load_whole(Source(TOY, compile=True))
    counters.clear()
    plain(IDS_BT)
    assert not counters["frames"]


@pytest.mark.slow  # the compiler takes its time
def test_a_fused_model_computes_the_same_and_is_cut_exactly():
    plain, fused = (load_whole(Source(TOY, compile=compiled)) for compiled in (False, True))
    with torch.no_grad():
        counters.clear()
        torch.testing.assert_close(fused(IDS_BT).logits, plain(IDS_BT).logits, rtol=1e-4, atol=1e-4)
        assert counters["frames"]["ok"]
        hidden_BTD = fused(IDS_BT, output_hidden_states=True).hidden_states[4]
    cut = CutModel(load_up_to(Source(TOY, compile=True), 3), 3)
    assert torch.equal(cut.span(cut.prefix(IDS_BT), cut.frozen), hidden_BTD)


@pytest.mark.slow
def test_a_run_with_fused_kernels_is_another_run_with_the_same_figures(short):
    job = ("eval=toy", "eval.limit=3", "train.steps=5", "method.c=50")
    folders = [run(short(*job, f"model.compile={compiled}")) for compiled in ("false", "true")]
    assert folders[0] != folders[1]
    steps = zip(*(read_jsonl(folder / "train.jsonl") for folder in folders), strict=True)
    assert all(math.isclose(a["forget_loss"], b["forget_loss"], rel_tol=1e-5) for a, b in steps)
    plain, fused = (read_metrics(folder) for folder in folders)
    assert {k: v for k, v in plain.items() if k.endswith("/acc")} == {
        k: v for k, v in fused.items() if k.endswith("/acc")
    }
