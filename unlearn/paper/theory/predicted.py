"""The predicted position of a prompt: the state at layer l there, and the output as a function of it.

All tokens before the last run once and stay in the key-value cache. One more step, of the last token alone, then gives
the output for any number of vectors added to the state at layer l: other positions stay as they are. So nothing larger
than a batch of caches is ever in memory. B batch, D hidden size, V vocabulary, N questions.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import PreTrainedModel

from unlearn.models.architectures import decoder_layers, hidden_of, input_device
from unlearn.paper.theory.finished_run import Question

T = TypeVar("T")


class Predicted:
    """A prompt of two tokens or more, whose last position is the predicted one."""

    def __init__(self, model: PreTrainedModel, layer: int, ids: Sequence[int]) -> None:
        assert len(ids) > 1, ids
        self.dim, self.device = model.config.get_text_config().hidden_size, input_device(model)
        self._model, self._layer = model, decoder_layers(model)[layer]
        ids_1T = torch.tensor([ids], device=self.device)
        self._last_11 = ids_1T[:, -1:]
        with torch.no_grad():
            before = model(input_ids=ids_1T[:, :-1], use_cache=True, logits_to_keep=1)
        self._cache = before.past_key_values

    @property
    def nothing_1D(self) -> Tensor:
        """A zero vector, which changes no state."""
        return torch.zeros(1, self.dim, device=self.device)

    def output(self, added_BD: Tensor) -> Tensor:
        """Logits float32 [B, V] with each row's vector added to the state at layer l; differentiable in both modes."""
        return self._step(added_BD)[0]

    def state(self) -> Tensor:
        """h at layer l, float32 [D]."""
        with torch.no_grad():
            return self._step(self.nothing_1D)[1][0].float()

    def loss(self, added_BD: Tensor, answer: int) -> Tensor:
        """J, the cross-entropy of the answer's token: float64 [B], as float32 cannot tell small losses apart."""
        answers_B = torch.full((len(added_BD),), answer, device=self.device)
        return cross_entropy(self.output(added_BD).double(), answers_B, reduction="none")

    def loss_and_gradient(self, added_BD: Tensor, answer: int) -> tuple[Tensor, Tensor]:
        """J [B] and its gradient with respect to the state at layer l, [B, D]."""
        added_BD = added_BD.detach().clone().requires_grad_()
        with torch.enable_grad():
            loss_B = self.loss(added_BD, answer)
            [gradient_BD] = torch.autograd.grad(loss_B.sum(), added_BD)
        return loss_B.detach(), gradient_BD

    def pushed(self, tangent_BD: Tensor) -> Tensor:
        """A tangent = J^T tangent, the linear change of the output, by one JVP for the batch: [B, V]."""
        with torch.no_grad(), forward_ad.dual_level():
            dual_BD = forward_ad.make_dual(torch.zeros_like(tangent_BD), tangent_BD)
            return forward_ad.unpack_dual(self.output(dual_BD)).tangent

    def pulled(self, direction_BV: Tensor) -> Tensor:
        """J direction, the gradients of the output along directions, by one VJP for the batch: [B, D]."""
        added_BD = torch.zeros(len(direction_BV), self.dim, device=self.device, requires_grad=True)
        with torch.enable_grad():
            [gradient_BD] = torch.autograd.grad((self.output(added_BD) * direction_BV).sum(), added_BD)
        return gradient_BD

    def _step(self, added_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, V], and the states at layer l before anything was added, [B, D]."""
        cache = copy.deepcopy(self._cache)  # a step appends to it
        cache.batch_repeat_interleave(len(added_BD))
        states_BD: list[Tensor] = []

        def add(_layer: torch.nn.Module, _args: Any, output: Any) -> Any:
            h_B1D = hidden_of(output)
            states_BD.append(h_B1D[:, 0])
            changed_B1D = h_B1D + added_BD[:, None].to(h_B1D.dtype)
            return (changed_B1D, *output[1:]) if isinstance(output, tuple) else changed_B1D

        hook = self._layer.register_forward_hook(add)
        try:
            ids_B1 = self._last_11.expand(len(added_BD), 1)
            logits_BV = self._model(input_ids=ids_B1, past_key_values=cache, use_cache=True).logits[:, -1].float()
        finally:
            hook.remove()
        return logits_BV, states_BD[0]


@dataclass(frozen=True)
class States:
    """Of each question in both queries, at the predicted position, on the CPU: state, loss (float64) and gradient."""

    h_ND: Tensor
    h_per_ND: Tensor
    loss_N: Tensor
    loss_per_N: Tensor
    g_ND: Tensor  # Eq. 23
    g_per_ND: Tensor  # Eq. 22


def observe(model: PreTrainedModel, layer: int, questions: Sequence[Question]) -> States:
    """States, losses and gradients of a model at layer l for each question, without noise."""
    rows = []
    for question in tqdm(questions, desc="States", mininterval=1, disable=None):
        sides = [Predicted(model, layer, ids) for ids in (question.default, question.perturbed)]
        losses = [side.loss_and_gradient(side.nothing_1D, question.answer) for side in sides]
        states = [side.state() for side in sides]
        (loss_1, g_1D), (loss_per_1, g_per_1D) = losses
        rows.append((*states, loss_1[0], loss_per_1[0], g_1D[0], g_per_1D[0]))
    return States(
        **{f.name: torch.stack(c).cpu() for f, c in zip(fields(States), zip(*rows, strict=True), strict=True)}
    )
