"""Losses of methods on likelihoods, worked out by hand, and the sums over a vocabulary in parts."""

import math

import pytest
import torch

from unlearn.data.batches import Batch, Padded
from unlearn.errors import UserError
from unlearn.methods import DPO, NPO, RNA, GradDiff, SimNPO, likelihood_loss
from unlearn.methods.inputs import LogLikelihoods, Pair
from unlearn.methods.likelihood_loss import divergence, per_position, squared_difference
from unlearn.methods.objective import Setup


def pair(updated, reference):
    """Log-likelihoods {part: (sums, means)} of both models."""

    def of(model):
        return lambda part: LogLikelihoods(*(torch.tensor(values) for values in model[part]))

    return Pair(of(updated), of(reference))


def test_npo_by_hand():
    """beta 0.5; log ratios -2 and 0: 4 (log(1 + e^-1) + log 2) / 2."""
    loss = NPO(0.5).forget(pair({"forget": ([-12.0, -7.0], [-3.0, -3.5])}, {"forget": ([-10.0, -7.0], [0.0, 0.0])}))
    assert loss.item() == pytest.approx(2 * (math.log(1 + math.exp(-1)) + math.log(2)))


def test_simnpo_by_hand():
    """beta 0.5, gamma 0.25; means -4 and -1: 4 (log(1 + e^-1.75) + log(1 + e^-0.25)) / 2. No reference is asked for."""
    asked = Pair(pair({"forget": ([0.0, 0.0], [-4.0, -1.0])}, {}).updated, None)
    expected = 2 * (math.log(1 + math.exp(-1.75)) + math.log(1 + math.exp(-0.25)))
    assert SimNPO(0.5, 0.25).forget(asked).item() == pytest.approx(expected)


def test_dpo_by_hand_and_what_the_published_ratio_does():
    """beta 0.5; preferred ratio 3, forget ratio -1: 4 log(1 + e^-2). Published: the preferred text cancels."""
    models = pair(
        {"forget": ([-11.0], [0.0]), "preferred": ([-2.0], [0.0])},
        {"forget": ([-10.0], [0.0]), "preferred": ([-5.0], [0.0])},
    )
    assert DPO(0.5).forget(models).item() == pytest.approx(4 * math.log(1 + math.exp(-2)))
    published = DPO(0.5, published=True).forget(models)
    assert published.item() == pytest.approx(NPO(0.5).forget(models).item())
    assert published.item() == pytest.approx(4 * math.log(1 + math.exp(-0.5)))


def test_gradient_difference_by_hand():
    assert GradDiff().forget(pair({"forget": ([0.0, 0.0], [-4.0, -1.0])}, {})).item() == -2.5


def test_npo_at_the_start_has_the_gradient_of_gradient_ascent():
    """sigmoid(0) = 1/2, so d/dS = 1 for each sample's log-likelihood S, over the batch size (Zhang et al.)."""
    sums_B = torch.tensor([-12.0, -7.0], requires_grad=True)
    here = LogLikelihoods(sums_B, sums_B / 3)
    NPO(0.1).forget(Pair(lambda _: here, lambda _: LogLikelihoods(sums_B.detach(), sums_B.detach()))).backward()
    torch.testing.assert_close(sums_B.grad, torch.tensor([0.5, 0.5]))


def test_simnpo_weighs_samples_by_their_length_and_likelihood():
    """d/dM = 2 sigmoid(beta M + gamma) / batch size, for each sample's mean M (Fan et al.)."""
    means_B = torch.tensor([-4.0, -1.0], requires_grad=True)
    SimNPO(0.5, 0.25).forget(Pair(lambda _: LogLikelihoods(means_B, means_B), None)).backward()
    torch.testing.assert_close(means_B.grad, torch.tensor([-1.75, -0.25]).sigmoid())


def test_divergence_and_squared_difference_by_hand():
    q, p = torch.tensor([[0.25, 0.75]]).log(), torch.tensor([[0.5, 0.5]]).log()
    assert divergence(q, p).item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    assert squared_difference(q, p).item() == pytest.approx((math.log(0.5) ** 2 + math.log(1.5) ** 2) / 2)
    assert divergence(q, q).item() == 0


@pytest.mark.parametrize("chunk", [1, 2, 5, 512])
def test_logits_in_parts_give_the_values_and_gradients_of_all_at_once(monkeypatch, chunk):
    """Not to the bit: a matrix product of other size rounds otherwise."""
    monkeypatch.setattr(likelihood_loss, "CHUNK", chunk)
    torch.manual_seed(0)
    states_ND, head_VD = torch.randn(5, 4, dtype=torch.float64, requires_grad=True), torch.randn(7, 4).double()
    weights_N = torch.randn(5).double()

    def values(states_nD, rows):
        assert len(states_nD) <= chunk
        return -(states_nD @ head_VD.T).log_softmax(-1)[:, 3] * weights_N[rows]

    (per_position(states_ND, values).square() * weights_N).sum().backward()
    plain_ND = states_ND.detach().clone().requires_grad_()
    (values_all := -(plain_ND @ head_VD.T).log_softmax(-1)[:, 3] * weights_N).square().mul(weights_N).sum().backward()
    torch.testing.assert_close(per_position(states_ND.detach(), values), values_all.detach())
    torch.testing.assert_close(states_ND.grad, plain_ND.grad)


def test_no_position_gives_no_value():
    assert per_position(torch.zeros(0, 4), lambda states_nD, _: states_nD.sum(dim=1)).shape == (0,)


class Model:
    """A view of a model whose next-token probabilities do not depend on the text: log-probabilities [V]."""

    def __init__(self, log_probabilities_V):
        self.logits_V = log_probabilities_V

    def hidden(self, part):
        return torch.zeros(2, 3, 4)

    def final(self, part, hidden_BTD=None):
        return torch.zeros(2, 3, 4)

    def logits(self, states_ND):
        return self.logits_V.expand(len(states_ND), -1)

    def once(self, key, compute):
        return compute()


def test_padding_and_the_first_token_are_not_counted():
    """Rows [BOS, 1, 2] and [BOS, 2, pad]: sums log(1/4) + log(1/2) and log(1/2), means over two tokens and one."""
    ids_BT = torch.tensor([[0, 1, 2], [0, 2, 3]])
    mask_BT = torch.tensor([[True, True, True], [True, True, False]])
    part = Padded(ids_BT, mask_BT)
    model = Model(torch.tensor([0.125, 0.25, 0.5, 0.125]).log())
    batch = Batch(0, "bio", part, part)
    for mask in ("padding", "padding_and_bos"):
        objective = GradDiff(retain="nll").objective(setup(mask))
        losses = objective(batch, model, model)
        means = [math.log(0.125) / 2, math.log(0.5)]
        assert losses.forget.item() == pytest.approx(sum(means) / 2)
        assert losses.retain.item() == pytest.approx(-sum(means) / 2)
    counted = GradDiff(retain="nll").objective(setup("none"))(batch, model, model)  # padding counts: log(1/8) more
    assert counted.forget.item() == pytest.approx((math.log(0.125) / 2 + (math.log(0.5) + math.log(0.125)) / 2) / 2)


def setup(mask):
    return Setup(["bio"], 4, torch.device("cpu"), 0, {"bio": 2.0}, mask)


def test_alpha_is_the_topics_own():
    part = Padded(torch.tensor([[0, 1, 1]] * 2), torch.ones(2, 3, dtype=torch.bool))
    model = Model(torch.tensor([0.5, 0.5]).log())
    assert GradDiff(retain="nll").objective(setup("padding"))(Batch(0, "bio", part, part), model, model).alpha == 2.0


def test_distributions_of_half_precision_are_compared_in_float32():
    part = Padded(torch.tensor([[0, 1, 1]] * 2), torch.ones(2, 3, dtype=torch.bool))
    logits = torch.randn(2, 7, generator=torch.Generator().manual_seed(0)).bfloat16()
    losses = GradDiff().objective(setup("padding"))(Batch(0, "bio", part, part), Model(logits[0]), Model(logits[1]))
    q_V, p_V = (row.float().log_softmax(-1) for row in logits)
    assert losses.retain.dtype == torch.float32
    assert losses.retain.item() == pytest.approx((q_V.exp() * (q_V - p_V)).sum().item(), rel=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NPO(0.0), r"^beta=0 is not allowed: it must be a finite number > 0"),
        (lambda: SimNPO(0.1, gamma=-1), r"^gamma=-1 is not allowed: it must be a finite number >= 0"),
        (lambda: GradDiff(retain="k"), r"^retain=k is not allowed\. Did you mean 'kl'\? Allowed: kl, mse, nll"),
        (lambda: DPO(0.1, published="yes"), r"^published=yes is not allowed: it must be true or false"),
        (lambda: NPO(0.1, retain="nll", rna=RNA(0.1)), r"^retain=nll with RNA \(nu=0\.1\) is not allowed"),
        (lambda: NPO(0.1, published=True).objective(setup("padding")), r"^published=True with mask=padding is not"),
    ],
)
def test_what_is_not_allowed_is_named(make, message):
    with pytest.raises(UserError, match=message):
        make()
