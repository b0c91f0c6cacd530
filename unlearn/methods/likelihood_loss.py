"""The losses of methods on likelihoods, and a retain loss that compares next-token distributions.

RNA noises the reference (the frozen model) of the retain loss at layer l, as it noises the target of representation
misdirection. B batch, T tokens, D hidden size, N positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from unlearn.data.batches import Batch, Part
from unlearn.methods.inputs import LogLikelihoods, Pair
from unlearn.methods.losses import at_least_float32, counted_positions, masked_mean, mean_norm
from unlearn.methods.noise import Augmentation
from unlearn.methods.objective import Alpha, Losses, View, alpha_of

if TYPE_CHECKING:
    from unlearn.methods.likelihood import LikelihoodMethod

CHUNK = 512  # positions whose logits are in memory at a time


@dataclass(frozen=True)
class LikelihoodObjective:
    """The forget loss of any method on likelihoods plus alpha times a retain loss, with RNA on its reference."""

    method: LikelihoodMethod
    alpha: Alpha
    mask: str
    noise: Augmentation

    def __call__(self, batch: Batch, frozen: View, updated: View) -> Losses:
        """Forget and retain loss; for the log, the forget texts' loss and the drift of retain states."""
        reference = frozen.without_mask() if self.method.published else frozen

        def of_updated(part: Part) -> LogLikelihoods:
            return updated.once(part, lambda: self._likelihoods(updated, part, batch))

        @torch.no_grad()
        def of_reference(part: Part) -> LogLikelihoods:
            key = (part, self.mask, self.method.published)
            return reference.once(key, lambda: self._likelihoods(reference, part, batch))

        def facts() -> dict[str, Tensor]:
            with torch.no_grad():
                drift_BTD = updated.hidden("retain") - frozen.hidden("retain")
                counted_BT = counted_positions(batch.retain.mask_BT, self.mask)
                return {
                    "forget_nll": -of_updated("forget").mean_B.mean(),
                    "retain_drift": mean_norm(drift_BTD, counted_BT),
                }

        return Losses(
            self.method.forget(Pair(of_updated, of_reference)),
            self._retain(batch, reference, updated, of_updated),
            alpha_of(self.alpha, batch.topic),
            facts,
        )

    def _retain(
        self, batch: Batch, reference: View, updated: View, likelihoods: Callable[[Part], LogLikelihoods]
    ) -> Tensor:
        if self.method.retain == "nll":
            return -likelihoods("retain").mean_B.mean()
        counted_BT = counted_positions(batch.retain.mask_BT, self.mask)

        @torch.no_grad()
        def noised() -> Tensor:
            hidden_BTD = self.noise(reference.hidden("retain"), counted_BT, batch.topic, batch.step)
            return reference.final("retain", hidden_BTD)[counted_BT]

        reference_ND = reference.once(("noised", self.noise, self.mask), noised)
        compare = {"kl": divergence, "mse": squared_difference}[self.method.retain]

        def values(states_nD: Tensor, rows: slice) -> Tensor:
            with torch.no_grad():
                expected_nV = _log_probabilities(reference, reference_ND[rows])
            return compare(expected_nV, _log_probabilities(updated, states_nD))

        values_N = per_position(updated.final("retain")[counted_BT], values)
        return masked_mean(scattered(values_N, counted_BT), counted_BT)

    def _likelihoods(self, view: View, part: Part, batch: Batch) -> LogLikelihoods:
        padded = batch.parts[part]
        counted_BT = counted_positions(padded.mask_BT, "none" if self.mask == "none" else "padding_and_bos")
        counted_BT[:, 0] = False  # nothing predicts it
        targets_N = padded.ids_BT[counted_BT]
        before_BT = counted_BT.roll(-1, dims=1)  # the position that predicts a token is the one before

        def values(states_nD: Tensor, rows: slice) -> Tensor:
            return -cross_entropy(at_least_float32(view.logits(states_nD)), targets_N[rows], reduction="none")

        values_BT = scattered(per_position(view.final(part)[before_BT], values), counted_BT)
        if self.method.published:
            mean_1 = (values_BT.sum() / counted_BT.sum().clamp(min=1))[None]
            return LogLikelihoods(mean_1, mean_1)
        sum_B = values_BT.sum(dim=1)
        return LogLikelihoods(sum_B, sum_B / counted_BT.sum(dim=1).clamp(min=1))

    def prepare(self, batch: Batch) -> None:
        """Begin to draw the noise of the next step."""
        self.noise.prepare(counted_positions(batch.retain.mask_BT, self.mask), batch.topic, batch.step)

    def state(self) -> dict[str, Tensor]:
        """Nothing is drawn or measured."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Nothing was drawn or measured."""


def _log_probabilities(view: View, states_nD: Tensor) -> Tensor:
    return log_softmax(at_least_float32(view.logits(states_nD)), dim=-1)


def divergence(expected_nV: Tensor, log_probabilities_nV: Tensor) -> Tensor:
    """KL(expected || probabilities) at each position, of log-probabilities: [n], in nats."""
    return kl_div(log_probabilities_nV, expected_nV, reduction="none", log_target=True).sum(dim=-1)


def squared_difference(expected_nV: Tensor, log_probabilities_nV: Tensor) -> Tensor:
    """Mean over the vocabulary of the squared difference of log-probabilities, at each position: [n]."""
    return (expected_nV - log_probabilities_nV).square().mean(dim=-1)


def scattered(values_N: Tensor, at_BT: Tensor) -> Tensor:
    """The values at their positions, zeros elsewhere: [B, T]."""
    return values_N.new_zeros(at_BT.shape).masked_scatter(at_BT, values_N)


def per_position(states_ND: Tensor, values: Callable[[Tensor, slice], Tensor]) -> Tensor:
    """Apply a function to each position's state, `CHUNK` positions at a time: [N].

    Args:
        values: from the states [n, D] of some positions, and which of the N they are, to one value each, [n]. A value
            may depend on no other position's state.

    The logits [N, V] are never in memory together, nor computed twice: the gradient of each value with respect to its
    own state is computed in the forward pass and kept, [N, D].
    """
    if not (torch.is_grad_enabled() and states_ND.requires_grad):
        return torch.cat([values(states_ND[rows], rows) for rows in _chunks(len(states_ND))])
    return _PerPosition.apply(states_ND, values)


def _chunks(count: int) -> list[slice]:
    return [slice(at, at + CHUNK) for at in range(0, max(count, 1), CHUNK)]


class _PerPosition(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states_ND: Tensor, values: Callable[[Tensor, slice], Tensor]) -> Tensor:
        collected, gradients = [], []
        for rows in _chunks(len(states_ND)):
            with torch.enable_grad():
                states_nD = states_ND[rows].detach().requires_grad_()
                values_n = values(states_nD, rows)
                [gradient_nD] = torch.autograd.grad(values_n.sum(), states_nD)
            collected.append(values_n.detach())
            gradients.append(gradient_nD)
        ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(collected)

    @staticmethod
    def backward(ctx: Any, gradient_N: Tensor) -> tuple[Tensor, None]:
        [of_values_ND] = ctx.saved_tensors
        return of_values_ND * gradient_N[:, None].to(of_values_ND.dtype), None
