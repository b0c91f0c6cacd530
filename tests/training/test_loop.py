"""Algorithm 1: what is minimised, what moves, what does not, and what happens when a loss is not finite."""

import copy
import math
from dataclasses import replace

import pytest
import torch

from unlearn.data.batches import batches
from unlearn.data.corpora import Topic
from unlearn.methods.misdirection_loss import Misdirection
from unlearn.methods.noise import Ahead, Augmentation
from unlearn.methods.objective import Losses
from unlearn.methods.rmu import RMU
from unlearn.methods.rna import RNA
from unlearn.models.cutting import CutModel
from unlearn.training.loop import Schedule, train_variants
from unlearn.training.optimizer import Optimizer, schedule
from unlearn.training.variant import Listener, make_variant

TOPICS = [
    Topic("bio", [[3, 4, 5, 6], [7, 8]] * 4, [[9, 10], [11, 12, 13]] * 4, {}),
    Topic("cyber", [[14, 15, 16], [17, 18]] * 4, [[19, 20], [21]] * 4, {}),
]
SETTINGS = {"lr": 1e-2, "optimizer": Optimizer()}


def objective(nu=0.0, c=2.0, alpha=3.0):
    controls = {t.name: RMU(c).control_vector(16, torch.Generator().manual_seed(i)) for i, t in enumerate(TOPICS)}
    return Misdirection(RMU(c), controls, alpha, "padding", Augmentation(RNA(nu), 0))


def run(cut, variants, steps=4, log_every=1, **how):
    stream = batches(TOPICS, steps=steps, batch_size=2, pad_id=0, side="right")
    train_variants(cut, variants, stream, mask_padding=False, schedule=Schedule(log=log_every), **how)
    return [variant.records for variant in variants]


def test_first_step_is_adamw_on_the_loss_of_two_whole_models(tiny_llama):
    """Losses and gradients by whole forward passes with hooks on a copy; AdamW's first step is lr * g / (|g| + eps)."""
    cut = CutModel(tiny_llama, 3)
    variant = make_variant(objective(nu=0.3), cut.frozen, **SETTINGS)
    updated = copy.deepcopy(tiny_llama)
    [batch] = batches(TOPICS[:1], steps=1, batch_size=2, pad_id=0, side="right")

    def hidden(model, part):
        seen = []
        hook = model.model.layers[3].register_forward_hook(lambda _m, _i, output: seen.append(output))
        model(input_ids=part.ids_BT, attention_mask=part.mask_BT.long())
        hook.remove()
        return seen[0]

    def mean(difference_BTD, mask_BT):
        rows = [d[m].square().mean() for d, m in zip(difference_BTD, mask_BT, strict=True)]
        return torch.stack(rows).mean()

    target_BTD = 2.0 * objective().controls["bio"]
    noisy_BTD = Augmentation(RNA(0.3), 0)(hidden(tiny_llama, batch.retain), batch.retain.mask_BT, "bio", 0)
    names = list(cut.frozen)
    for name in names:
        updated.get_parameter(name).requires_grad_(True)
    forget = mean(hidden(updated, batch.forget) - target_BTD, batch.forget.mask_BT)
    retain = mean(hidden(updated, batch.retain) - noisy_BTD, batch.retain.mask_BT)
    (forget + 3.0 * retain).backward()
    [[record]] = run(cut, [variant], steps=1)
    assert record.forget_loss == pytest.approx(forget.item(), rel=1e-5)
    assert record.retain_loss == pytest.approx(retain.item(), rel=1e-5)
    assert record.loss == pytest.approx((forget + 3.0 * retain).item(), rel=1e-5)
    for name in names:
        gradient = updated.get_parameter(name).grad
        expected = tiny_llama.get_parameter(name) - 1e-2 * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(variant.weights[name], expected, rtol=0, atol=1e-4)


def test_a_variants_bytes_are_its_matrices_and_from_the_first_step_on_two_moments(tiny_llama):
    cut = CutModel(tiny_llama, 3)
    variant = make_variant(objective(), cut.frozen, **SETTINGS)
    matrices = 3 * 16 * 32 * 4
    assert variant.nbytes == matrices
    run(cut, [variant], steps=1)
    assert variant.nbytes == 3 * matrices + 3 * 4  # and the number of steps for each


def test_exactly_the_chosen_matrices_move(tiny_llama):
    before = {name: p.clone() for name, p in tiny_llama.named_parameters()}
    cut = CutModel(tiny_llama, 3)
    variant = make_variant(objective(), cut.frozen, **SETTINGS)
    run(cut, [variant])
    assert set(variant.weights) == {f"model.layers.{i}.mlp.down_proj.weight" for i in (1, 2, 3)}
    assert all(not torch.equal(w, before[name]) for name, w in variant.weights.items())
    # The model itself, frozen and shared, is bit-identical.
    assert all(torch.equal(p, before[name]) for name, p in tiny_llama.named_parameters())


def test_the_linear_schedule_ends_a_share_of_the_rate_above_zero(tiny_llama):
    """Adam without memory moves its fastest entry by the learning rate itself: lr (1 - t / T) at step t."""
    cut = CutModel(tiny_llama, 3)
    without_memory = Optimizer(betas=(0.0, 0.0), eps=1e-12)
    variant = make_variant(objective(), cut.frozen, schedule("linear", 1e-2, 4), without_memory)
    moved, before = [], {name: w.detach().clone() for name, w in variant.weights.items()}

    class Moves(Listener):
        def on_record(self, variant, record):
            moved.append(max((w - before[name]).abs().max().item() for name, w in variant.weights.items()))
            before.update({name: w.detach().clone() for name, w in variant.weights.items()})

    variant.listener = Moves()
    stream = batches(TOPICS, steps=4, batch_size=2, pad_id=0, side="right")
    train_variants(cut, [variant], stream, mask_padding=False)
    assert moved == pytest.approx([1e-2, 0.75e-2, 0.5e-2, 0.25e-2], rel=1e-3)


def test_variants_do_not_see_each_other(tiny_llama):
    cut = CutModel(tiny_llama, 3)
    alone = [make_variant(objective(nu), cut.frozen, **SETTINGS) for nu in (0.0, 0.1)]
    for variant in alone:
        run(cut, [variant])
    together = [make_variant(objective(nu), cut.frozen, **SETTINGS) for nu in (0.0, 0.1)]
    run(cut, together)
    for a, b in zip(alone, together, strict=True):
        assert all(torch.equal(a.weights[name], b.weights[name]) for name in a.weights)
    assert any(not torch.equal(w, together[1].weights[name]) for name, w in together[0].weights.items())


def test_a_master_copy_keeps_updates_that_bfloat16_loses(tiny_llama):
    cut = CutModel(tiny_llama.bfloat16(), 3)
    master, model = (
        make_variant(objective(), cut.frozen, 1e-6, Optimizer(precision=precision)) for precision in ("master", "model")
    )
    run(cut, [master, model])
    moved = {
        name: [(v.weights[name].float() != cut.frozen[name].float()).float().mean().item() for v in (master, model)]
        for name in cut.frozen
    }
    assert all(w.dtype == torch.float32 for w in master.weights.values())
    assert all(w.dtype == torch.bfloat16 for w in model.weights.values())
    assert all(in_master > 0.9 and in_model < 0.1 for in_master, in_model in moved.values())


class Changed:
    """An objective whose losses are changed by a function of the batch and the losses."""

    def __init__(self, good, change):
        self.good, self.change = good, change
        self.prepare, self.state, self.restore = good.prepare, good.state, good.restore

    def __call__(self, batch, frozen, updated):
        losses = self.good(batch, frozen, updated)
        return Losses(self.change(batch, losses), losses.retain, losses.alpha, losses.facts)


@pytest.mark.parametrize(("late", "log_every"), [(False, 1), (False, 10), (True, 1), (True, 10)])
def test_a_loss_that_is_not_finite_stops_its_variant_only(tiny_llama, late, log_every):
    """Late as on a GPU, where the host does not wait for the loss: the update of the wrong step must do nothing."""
    cut = CutModel(tiny_llama, 3)
    good = objective()
    bad = Changed(good, lambda batch, losses: losses.forget * (math.nan if batch.step == 2 else 1))
    variants = [make_variant(o, cut.frozen, **SETTINGS) for o in (bad, good)]
    reference = make_variant(good, cut.frozen, **SETTINGS)
    records = run(cut, variants, steps=6, log_every=log_every, check_late=late)
    run(cut, [reference], steps=2)
    assert "nan at step 2, topic bio" in variants[0].error
    assert variants[0].progress.steps == 2
    assert all(torch.equal(variants[0].weights[n], reference.weights[n]) for n in reference.weights)
    assert [r.step for r in records[0]] == ([0, 1] if log_every == 1 else [0])  # what was logged stays
    assert [r.step for r in records[1]] == (list(range(6)) if log_every == 1 else [0, 5])
    assert variants[1].error is None


@pytest.mark.parametrize("late", [False, True])
def test_a_gradient_that_is_not_finite_is_no_update_either(tiny_llama, late):
    """The loss is finite, and the derivative of the square root at 0 is not."""
    cut = CutModel(tiny_llama, 3)
    good = objective()

    def change(batch, losses):
        return losses.forget + (0 * losses.retain if batch.step == 2 else losses.retain.detach()).sqrt()

    variants = [make_variant(o, cut.frozen, **SETTINGS) for o in (Changed(good, change), good)]
    run(cut, variants, steps=3, check_late=late)  # in the last step, too
    assert "the gradient's norm became nan at step 2, topic bio" in variants[0].error
    assert all(weight.isfinite().all() for weight in variants[0].weights.values())
    assert variants[1].error is None


def test_only_coming_steps_are_prepared(tiny_llama):
    """A variant that was resumed ahead of the others would draw noise that nobody takes."""
    cut = CutModel(tiny_llama, 3)
    prepared = [[], []]

    class Noted(Augmentation):
        def prepare(self, mask_BT, topic, step):
            prepared[self.seed].append(step)

    variants = [
        make_variant(replace(objective(), noise=Noted(RNA(0.0), seed)), cut.frozen, **SETTINGS) for seed in (0, 1)
    ]
    variants[1].progress = replace(variants[1].progress, steps=3)
    run(cut, variants, steps=6)
    assert prepared == [[1, 2, 3, 4, 5], [3, 4, 5]]


def test_late_checks_and_noise_drawn_ahead_change_nothing(tiny_llama):
    cut = CutModel(tiny_llama, 3)
    ahead = Ahead(cut.dim, cut.device, always=True)

    plain, late = (
        [
            make_variant(
                replace(objective(), noise=Augmentation(RNA(0.3, per=per), seed, noise)), cut.frozen, **SETTINGS
            )
            for seed, per in ((0, "token"), (0, "token"), (1, "token"), (0, "text"))
        ]
        for noise in (None, ahead)
    )
    lines = [
        [[(r.step, r.loss, r.gradient_norm) for r in records] for records in run(cut, variants, steps=6, **how)]
        for variants, how in ((plain, {}), (late, {"check_late": True}))
    ]
    assert lines[0] == lines[1]
    for a, b in zip(plain, late, strict=True):
        assert all(torch.equal(a.weights[n], b.weights[n]) for n in a.weights)
    for other in (2, 3):
        assert not torch.equal(*(late[i].weights[next(iter(cut.frozen))] for i in (0, other)))


def test_the_first_and_the_last_step_are_always_logged(tiny_llama):
    cut = CutModel(tiny_llama, 3)
    [records] = run(cut, [make_variant(objective(), cut.frozen, **SETTINGS)], steps=6, log_every=4)
    assert [r.step for r in records] == [0, 4, 5]
    assert [r.topic for r in records] == ["bio", "bio", "cyber"]
    # Real tokens: forget 6 + retain 5 (bio), 5 + 3 (cyber), three times each.
    assert records[-1].tokens == 3 * (6 + 5) + 3 * (5 + 3)


def test_variants_of_one_batch_report_its_speed_alike(tiny_llama):
    """The first one's record used to leave out what the others' work takes."""
    cut = CutModel(tiny_llama, 3)
    variants = [make_variant(objective(), cut.frozen, **SETTINGS) for _ in range(8)]
    for records in zip(*run(cut, variants, steps=3), strict=True):
        assert max(r.tokens_per_second for r in records) < 2 * min(r.tokens_per_second for r in records)
        assert max(r.seconds for r in records) < 2 * min(r.seconds for r in records)


def test_a_line_of_train_jsonl_has_the_documented_names(tiny_llama):
    cut = CutModel(tiny_llama, 3)
    [[record]] = run(cut, [make_variant(objective(), cut.frozen, **SETTINGS)], steps=1)
    assert list(record.line()) == [
        "step", "topic", "forget_loss", "retain_loss", "loss", "gradient_norm", "tokens_per_second", "memory_mb",
        "forget_norm", "retain_norm", "forget_cosine", "retain_drift",
    ]  # fmt: skip
