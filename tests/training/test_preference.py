"""Methods on likelihoods equal an independent plain reference in float64, over random shapes, settings and topics."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.training import preference_reference as reference
from tests.training.test_reference import small_gpt2, trained
from unlearn.data.batches import batches
from unlearn.data.corpora import Topic
from unlearn.methods import DPO, NPO, GradDiff, SimNPO
from unlearn.methods.noise import Augmentation
from unlearn.methods.objective import Setup
from unlearn.methods.rna import RNA
from unlearn.models.cutting import CutModel
from unlearn.training.loop import train_variants
from unlearn.training.optimizer import Optimizer
from unlearn.training.variant import make_variant


@st.composite
def cases(draw):
    """A model's shape, topics with rows of unequal lengths (a lone BOS included), preferred rows, and settings."""
    row = st.lists(st.integers(1, 30), min_size=1, max_size=7)
    rows = st.lists(row, min_size=1, max_size=5)
    topics = [(f"topic{i}", draw(rows), draw(rows)) for i in range(draw(st.integers(1, 2)))]
    layers = draw(st.integers(3, 5))
    mask = draw(st.sampled_from(["none", "padding", "padding_and_bos"]))
    published = mask == "none" and draw(st.booleans())
    retain = draw(st.sampled_from(["kl", "mse", "nll"]))
    setting = reference.Setting(
        method=draw(st.sampled_from(["npo", "simnpo", "dpo", "grad_diff"])),
        retain=retain,
        beta=draw(st.sampled_from([0.05, 0.1, 1.0])),
        gamma=draw(st.sampled_from([0.0, 0.5])),
        mask=mask,
        published=published,
        alpha={name: draw(st.sampled_from([0.0, 1.0, 10.0])) for name, _, _ in topics},
        nu=draw(st.sampled_from([0.0, 0.05, 1.0])) if retain != "nll" else 0.0,
        lr=draw(st.sampled_from([1e-3, 1e-2])),
        layer=draw(st.integers(2, layers - 1)),
        batch_size=draw(st.integers(1, 3)),
        optimizer=draw(st.sampled_from(["adamw", "adamw_published"])),
    )
    heads = draw(st.integers(1, 2))
    shape = {"n_layer": layers, "n_head": heads, "n_embd": heads * draw(st.sampled_from([4, 6]))}
    return topics, draw(rows), setting, shape


def method(s):
    common = {"retain": s.retain, "published": s.published, "rna": RNA(s.nu)}
    if s.method == "npo":
        return NPO(s.beta, **common)
    if s.method == "simnpo":
        return SimNPO(s.beta, s.gamma, **common)
    if s.method == "dpo":
        return DPO(s.beta, **common)
    return GradDiff(**common)


def setup(cut, topics, s):
    names = [name for name, _, _ in topics]
    return Setup(names, cut.dim, cut.device, s.seed, s.alpha, s.mask)


def make(model, topics, s):
    """The cut model and a variant."""
    cut = CutModel(model, s.layer)
    optimizer = Optimizer(s.optimizer, betas=s.betas, eps=s.eps)
    return cut, make_variant(method(s).objective(setup(cut, topics, s)), cut.frozen, s.lr, optimizer)


def ours(model, topics, preferred, steps, s, **how):
    cut = CutModel(model, s.layer)
    return trained(cut, method(s).objective(setup(cut, topics, s)), topics, steps, s, preferred, **how)


@pytest.mark.parametrize("examples", [15, pytest.param(40, marks=pytest.mark.slow)])  # alone: rarer shapes
def test_losses_and_matrices_equal_the_plain_reference(examples):
    @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    @given(cases())
    def equal(case):
        topics, preferred, setting, shape = case
        model = small_gpt2(**shape)
        before = {name: p.clone() for name, p in model.named_parameters()}
        steps = 2 * len(topics)
        updated, expected = reference.unlearn(model, topics, preferred, steps, setting)
        weights, losses = ours(model, topics, preferred, steps, setting)
        for pair, expected_pair in zip(losses, expected, strict=True):
            assert pair == pytest.approx(expected_pair, rel=1e-10, abs=1e-10)
        assert set(weights) == {
            f"transformer.h.{i}.mlp.c_proj.weight" for i in range(setting.layer - 2, setting.layer + 1)
        }
        for name, w in weights.items():
            torch.testing.assert_close(w.detach(), updated.get_parameter(name).detach(), rtol=0, atol=1e-10)
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())

    equal()


ROWS = [[1, 3, 4, 5, 6], [1, 7, 8], [1, 9], [1, 10, 11, 12]]
TOPICS = [("bio", ROWS, ROWS[::-1]), ("cyber", ROWS[1:], ROWS)]
PREFERRED = [[1, 20, 21], [1, 22, 23, 24]]


def setting(**changes):
    kwargs = {"method": "npo", "retain": "kl", "beta": 0.1, "gamma": 0.0, "mask": "padding", "published": False}
    kwargs |= {"alpha": {"bio": 1.0, "cyber": 2.0}}
    kwargs |= {"nu": 0.1, "lr": 1e-2, "layer": 3, "batch_size": 4}
    return reference.Setting(**(kwargs | changes))


def equal(a, b):
    return a[1] == b[1] and all(torch.equal(a[0][name], b[0][name]) for name in b[0])


METHODS = ["npo", "simnpo", "dpo", "grad_diff"]


@pytest.mark.parametrize("name", METHODS)
def test_layers_that_run_again_in_the_backward_pass_change_no_bit(name):
    model = small_gpt2(n_layer=6, n_head=2, n_embd=8)
    s = setting(method=name)
    plain, again = (ours(model, TOPICS, PREFERRED, 3, s, recompute=recompute) for recompute in (False, True))
    assert equal(plain, again)


def test_recomputing_keeps_less_in_memory():
    """Of the layers above l only the inputs are kept: counted are the tensors saved for the backward pass."""
    model = small_gpt2(n_layer=12, n_head=2, n_embd=8)
    saved = []
    for recompute in (False, True):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            ours(model, TOPICS, PREFERRED, 1, setting(), recompute=recompute)
        saved.append(sum(sizes))
    assert saved[1] < 0.5 * saved[0]


@pytest.mark.parametrize("name", METHODS)
def test_without_noise_there_is_no_rna(name, monkeypatch):
    """nu = 0 gives the bits of a run in which nothing can be drawn."""
    model = small_gpt2(n_layer=5, n_head=2, n_embd=8)
    none = ours(model, TOPICS, PREFERRED, 3, setting(method=name, nu=0.0))
    monkeypatch.setattr(Augmentation, "__call__", lambda self, target_BTD, *_: target_BTD)
    assert equal(none, ours(model, TOPICS, PREFERRED, 3, setting(method=name, nu=0.3)))
    monkeypatch.undo()
    assert not equal(none, ours(model, TOPICS, PREFERRED, 3, setting(method=name, nu=0.3)))


def test_variants_together_are_as_alone_to_the_bit(tiny_llama):
    """All methods and two nu in one training; rows are packed."""
    settings_ = [setting(method=name, nu=nu) for name in METHODS for nu in (0.0, 0.1)]
    rows = [("bio", [[1, 3, 4, 5, 6, 7], [1, 7, 8], [1, 9], [1, 10, 11]] * 2, [[1, 30, 31, 32, 33, 34], [1, 35]] * 4)]
    stream = {"steps": 4, "batch_size": 4, "pad_id": 0, "side": "right", "preferred": PREFERRED}

    def run(chosen):
        cut, _ = make(tiny_llama, rows, setting())
        assert cut.packs
        variants = [make(tiny_llama, rows, s)[1] for s in chosen]
        topics = [Topic(name, forget, retain, {}) for name, forget, retain in rows]
        train_variants(cut, variants, batches(topics, **stream), mask_padding=False)
        return [variant.weights for variant in variants]

    together = run(settings_)
    for s, weights in list(zip(settings_, together, strict=True))[1::2]:  # those with noise
        [alone] = run([s])
        assert all(torch.equal(weights[name], alone[name]) for name in alone)


def test_the_reference_runs_once_for_all_variants_with_its_noise(monkeypatch):
    """Suffix runs of a step with three variants, two of which share nu: forget text of the frozen model, its
    noised retain text for each nu, and two of each variant.
    """
    model = small_gpt2(n_layer=5, n_head=2, n_embd=8)
    cut, _ = make(model, TOPICS, setting())
    variants = [make(model, TOPICS, setting(nu=nu, beta=beta))[1] for nu, beta in ((0.1, 0.1), (0.1, 0.2), (0.3, 0.1))]
    calls = []
    suffix = CutModel.suffix
    monkeypatch.setattr(CutModel, "suffix", lambda *a, **k: calls.append(1) or suffix(*a, **k))
    stream = batches([Topic(*TOPICS[0], {})], steps=1, batch_size=2, pad_id=0, side="right")
    train_variants(cut, variants, stream, mask_padding=False)
    assert len(calls) == 1 + 2 + 3 * 2
