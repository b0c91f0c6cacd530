"""Noise of RNA's size elsewhere (`RNA.where`): where it is, how large it is, and that nothing else changes."""

from dataclasses import dataclass, field

import pytest
import torch

from tests.training.test_loop import TOPICS, run
from unlearn.data.batches import Batch, Padded, batches
from unlearn.errors import UserError
from unlearn.methods.adaptive_rmu import AdaptiveRMU
from unlearn.methods.noise import Ahead, of_equal_norm
from unlearn.methods.npo import NPO
from unlearn.methods.objective import Setup
from unlearn.methods.rmu import RMU
from unlearn.methods.rna import PLACES, RNA
from unlearn.methods.rsv import RSV
from unlearn.models.cutting import CutModel
from unlearn.training.optimizer import Optimizer
from unlearn.training.variant import make_variant

NU, DIM = 0.5, 200
METHODS = {"rmu": RMU, "adaptive_rmu": AdaptiveRMU, "rsv": RSV}


@dataclass
class Zeros:
    """A view whose states are zeros, beside what was to be added where the trained layers begin."""

    batch: Batch
    added: dict[str, torch.Tensor] = field(default_factory=dict)

    def hidden(self, part, added_BTD=None):
        if added_BTD is not None:
            self.added[part] = added_BTD
        return torch.zeros(*self.batch.parts[part].ids_BT.shape, DIM)


def made_batch():
    """A hundred tokens to forget, 70 of them real in the second row, and eighty to retain, 60 of them real there."""

    def part(tokens, real):
        mask_BT = torch.arange(tokens)[None] < torch.tensor([[tokens], [real]])
        return Padded(torch.zeros(2, tokens, dtype=torch.long), mask_BT)

    return Batch(3, "bio", part(100, 70), part(80, 60), None)


def losses_of(where, method=RMU, size=1e-9):
    """Losses of a method with next to no target of its own, beside the updated view."""
    batch = made_batch()
    setup = Setup(["bio"], DIM, torch.device("cpu"), 0, 3.0, "padding")
    updated = Zeros(batch)
    return method(size, rna=RNA(NU, where=where)).objective(setup)(batch, Zeros(batch), updated), updated


@pytest.mark.parametrize("method", METHODS.values())
def test_noise_of_spread_nu_is_where_it_is_said_to_be_and_nowhere_else(method):
    """A loss between zeros and noise is nu^2: of 26,000 draws at least, five standard errors are 4 %."""
    nu_squared = pytest.approx(NU**2, rel=0.04)
    for where, expected in {
        "retain_target": (0, nu_squared),
        "forget_target": (nu_squared, 0),
        "gradient": (0, 0),
        "retain_input": (0, 0),
    }.items():
        losses, updated = losses_of(where, method)
        assert (round(losses.forget.item(), 9) or 0, losses.retain.item()) == expected, where
        assert (losses.gradient_noise is not None) == (where == "gradient"), where
        assert list(updated.added) == (["retain"] if where == "retain_input" else []), where
    added_BTD, mask_BT = updated.added["retain"], made_batch().retain.mask_BT
    assert added_BTD[mask_BT].std().item() == pytest.approx(NU, rel=0.02)
    assert (added_BTD[~mask_BT] == 0).all()


def test_without_noise_all_places_are_alike():
    batch, setup = made_batch(), Setup(["bio"], DIM, torch.device("cpu"), 0, 3.0, "padding")
    for where in PLACES:
        updated = Zeros(batch)
        losses = RMU(1.0, rna=RNA(0, where=where)).objective(setup)(batch, Zeros(batch), updated)
        assert (losses.retain.item(), losses.gradient_noise, updated.added) == (0, None, {})


def variant_of(cut, method, where, nu=0.3, ahead=None, seed=0):
    setup = Setup([topic.name for topic in TOPICS], cut.dim, cut.device, seed, 3.0, "padding", ahead)
    made = METHODS[method](2.0, rna=RNA(nu, where=where)).objective(setup)
    return make_variant(made, cut.frozen, 1e-2, Optimizer())


def first_gradients(cut, where, nu=0.3):
    """The gradients of a first step, by plain gradient descent, and its record."""
    variant = variant_of(cut, "rmu", where, nu)
    variant.optimizer, variant.lr = torch.optim.SGD(variant.weights.values(), lr=1.0), lambda _step: 1.0
    [[record]] = run(cut, [variant], steps=1)
    return [cut.frozen[name] - w.detach() for name, w in variant.weights.items()], record


def test_noise_on_the_gradient_has_the_norm_of_what_rna_changes_in_each_matrix(tiny_llama):
    cut = CutModel(tiny_llama, 3)
    (plain, before), (rna, _), (placebo, after) = (
        first_gradients(cut, *how) for how in (("gradient", 0.0), ("retain_target",), ("gradient",))
    )
    assert (after.forget_loss, after.retain_loss) == (before.forget_loss, before.retain_loss)
    for g, by_rna, by_placebo in zip(plain, rna, placebo, strict=True):
        change, other = by_rna - g, by_placebo - g
        assert other.norm().item() == pytest.approx(change.norm().item(), rel=1e-3)
        assert abs(torch.cosine_similarity(change.flatten(), other.flatten(), dim=0).item()) < 0.25  # 512 numbers


def test_noise_on_the_gradient_is_drawn_anew_for_every_seed_topic_step_and_matrix():
    gradients = [torch.ones(3, 4), None, torch.ones(3, 4)]
    keys = [(0, "bio", 0), (1, "bio", 0), (0, "cyber", 0), (0, "bio", 1)]
    drawn = [noise for key in keys for noise in of_equal_norm(gradients, *key) if noise is not None]
    assert len({noise[0, 0].item() for noise in drawn}) == 8
    assert torch.equal(drawn[0], of_equal_norm(gradients, *keys[0])[0])


def test_noise_on_the_retain_input_enters_the_trained_layers_of_the_updated_model_alone(tiny_llama):
    """The retain loss of the first step, by whole forward passes; layers 1 to 3 are trained."""
    cut = CutModel(tiny_llama, 3)
    _, record = first_gradients(cut, "retain_input")
    [batch] = batches(TOPICS[:1], steps=1, batch_size=2, pad_id=0, side="right")
    mask_BT = batch.retain.mask_BT
    zeros_BTD = torch.zeros(*mask_BT.shape, cut.dim)
    noise_BTD = variant_of(cut, "rmu", "retain_target").objective.noise(zeros_BTD, mask_BT, "bio", 0)

    def hidden(added_BTD):
        states = []
        hooks = [
            tiny_llama.model.layers[1].register_forward_pre_hook(lambda _m, args: (args[0] + added_BTD, *args[1:])),
            tiny_llama.model.layers[3].register_forward_hook(lambda _m, _a, output: states.append(output)),
        ]
        tiny_llama(input_ids=batch.retain.ids_BT, attention_mask=mask_BT.long())
        for hook in hooks:
            hook.remove()
        return states[0]

    with torch.no_grad():
        squares_BT = (hidden(noise_BTD) - hidden(0)).square().mean(dim=-1)
    expected = torch.stack([row[mask].mean() for row, mask in zip(squares_BT, mask_BT, strict=True)]).mean()
    assert record.retain_loss == pytest.approx(expected.item(), rel=1e-5)
    assert record.facts["retain_drift"] == 0  # of the texts as they are


def test_all_places_train_side_by_side_as_they_do_alone(tiny_llama):
    """Also with noise that is drawn ahead; and each place, method and seed is another model."""
    cut = CutModel(tiny_llama, 3)
    points = [(method, where, seed) for method in METHODS for where in PLACES for seed in (0, 1)]
    ahead = Ahead(cut.dim, cut.device, always=True)
    together = [variant_of(cut, method, where, ahead=ahead, seed=seed) for method, where, seed in points]
    run(cut, together, steps=3)
    ends = {tuple(w.sum().item() for w in variant.weights.values()) for variant in together}
    assert len(ends) == len(points)
    for (method, where, seed), packed in zip(points, together, strict=True):
        if seed == 1:
            alone = variant_of(cut, method, where, seed=seed)
            run(cut, [alone], steps=3)
            assert all(torch.equal(w, packed.weights[name]) for name, w in alone.weights.items()), (method, where)


def test_what_is_not_allowed_is_named():
    with pytest.raises(UserError, match=r"^where=gradients is not allowed\. Did you mean 'gradient'\? Allowed"):
        RNA(1.0, where="gradients")
    with pytest.raises(UserError, match=r"^rna\.where=gradient is not allowed with a method on likelihoods"):
        NPO(beta=0.1, rna=RNA(1.0, where="gradient"))
