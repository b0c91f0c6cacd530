"""Ours equals an independent plain reference in float64, over random shapes, methods, noise, padding and topics."""

from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from tests.training import reference
from unlearn.data.batches import batches
from unlearn.data.corpora import Topic
from unlearn.methods.adaptive_rmu import AdaptiveRMU
from unlearn.methods.misdirection_loss import Misdirection
from unlearn.methods.noise import Augmentation
from unlearn.methods.rmu import RMU
from unlearn.methods.rna import RNA
from unlearn.methods.rsv import RSV
from unlearn.models.cutting import CutModel
from unlearn.training.loop import train_variants
from unlearn.training.optimizer import Optimizer
from unlearn.training.variant import make_variant

# GPT-2 is the architecture whose layers never leave float64: the others' norms and softmax work in float32.


@st.composite
def cases(draw):
    """A model's shape, topics with rows of unequal lengths (a lone BOS included), and a run's settings."""
    rows = st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=7), min_size=1, max_size=5)
    topics = [(f"topic{i}", draw(rows), draw(rows)) for i in range(draw(st.integers(1, 3)))]
    layers = draw(st.integers(3, 5))
    setting = reference.Setting(
        method=draw(st.sampled_from(["rmu", "adaptive_rmu", "rsv"])),
        coefficient=draw(st.floats(0.1, 10)),
        norm=draw(st.sampled_from(["sample", "first_batch"])),
        mask=draw(st.sampled_from(["none", "padding", "padding_and_bos"])),
        optimizer=draw(st.sampled_from(["adamw", "adamw_published"])),
        alpha=draw(st.sampled_from([0.0, 1.0, 100.0])),
        nu=draw(st.sampled_from([0.0, 0.05, 1.0])),
        lr=draw(st.sampled_from([1e-3, 1e-2])),
        layer=draw(st.integers(2, layers - 1)),
        batch_size=draw(st.integers(1, 3)),
    )
    heads = draw(st.integers(1, 2))
    return topics, setting, {"n_layer": layers, "n_head": heads, "n_embd": heads * draw(st.sampled_from([4, 6]))}


def ours(model, topics, controls, steps, s):
    cut = CutModel(model, s.layer)
    method = {"rmu": RMU, "rsv": RSV, "adaptive_rmu": partial(AdaptiveRMU, norm=s.norm)}[s.method](s.coefficient)
    return trained(
        cut, Misdirection(method, controls, s.alpha, s.mask, Augmentation(RNA(s.nu), s.seed)), topics, steps, s
    )


def trained(cut, objective, topics, steps, s, preferred=None, **how):
    """Our matrices after these steps, and each step's two losses."""
    variant = make_variant(objective, cut.frozen, s.lr, Optimizer(s.optimizer, betas=s.betas, eps=s.eps))
    left = s.mask == "none"
    stream = batches(
        [Topic(name, forget, retain, {}) for name, forget, retain in topics],
        steps=steps,
        batch_size=s.batch_size,
        pad_id=0,
        side="left" if left else "right",
        preferred=preferred,
    )
    train_variants(cut, [variant], stream, mask_padding=left, **how)
    return variant.weights, [(r.forget_loss, r.retain_loss) for r in variant.records]


def small_gpt2(**shape):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=31,
        n_positions=16,
        bos_token_id=1,
        eos_token_id=1,
        initializer_range=0.3,
        attn_implementation="eager",
        **shape,
    )
    return GPT2LMHeadModel(config).double().eval().requires_grad_(False)


@pytest.mark.parametrize("examples", [20, pytest.param(60, marks=pytest.mark.slow)])  # alone: rarer shapes
def test_losses_and_matrices_equal_the_plain_reference(examples):
    @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    @given(cases())
    def equal(case):
        topics, setting, shape = case
        model = small_gpt2(**shape)
        draws = torch.Generator().manual_seed(1)
        controls = {name: RSV(1.0).control_vector(model.config.n_embd, draws).double() for name, _, _ in topics}
        steps = 2 * len(topics)
        updated, expected = reference.unlearn(model, topics, controls, steps, setting)
        weights, losses = ours(model, topics, controls, steps, setting)
        for pair, expected_pair in zip(losses, expected, strict=True):
            assert pair == pytest.approx(expected_pair, rel=1e-10, abs=1e-10)
        for name, w in weights.items():
            torch.testing.assert_close(w.detach(), updated.get_parameter(name).detach(), rtol=0, atol=1e-10)

    equal()
