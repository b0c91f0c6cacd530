"""RMU and NPO with RNA written plainly: what our code is measured against.

Two whole models with their heads, a hook at layer l, and gradients of every parameter, as the published codes have it.
Otherwise at its best: fused attention, no graph for the frozen model, a fused optimizer on the three matrices only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bench.shapes import ALPHA, ALPHA_NPO, BETA, LAYER, OPTIMIZER, SEED, C, control
from unlearn.data.batches import Batch, Padded
from unlearn.methods.noise import Augmentation
from unlearn.methods.rna import RNA
from unlearn.models.architectures import decoder_layers


def hidden(model: PreTrainedModel, part: Padded) -> Tensor:
    """h at layer l, [B, T, D], of a whole forward pass."""
    seen: list[Tensor] = []

    def keep(_module: object, _args: object, output: Tensor | tuple[Tensor, ...]) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    hook = decoder_layers(model)[LAYER].register_forward_hook(keep)
    model(input_ids=part.ids_BT, attention_mask=part.mask_BT.long(), use_cache=False)
    hook.remove()
    return seen[0]


def mean_square(difference_BTD: Tensor, part: Padded) -> Tensor:
    """Over dimensions, real tokens and samples."""
    square_BT = difference_BTD.float().square().mean(dim=-1) * part.mask_BT
    return (square_BT.sum(dim=1) / part.mask_BT.sum(dim=1)).mean()


def log_probabilities(model: PreTrainedModel, part: Padded) -> Tensor:
    """Next-token log-probabilities of a whole forward pass, float32 [B, T, V]."""
    logits_BTV = model(input_ids=part.ids_BT, attention_mask=part.mask_BT.long(), use_cache=False).logits
    return logits_BTV.float().log_softmax(dim=-1)


def log_likelihoods(log_p_BTV: Tensor, part: Padded) -> Tensor:
    """Of each sample, its first token and padding left out: [B]."""
    values_BT = log_p_BTV[:, :-1].gather(-1, part.ids_BT[:, 1:, None]).squeeze(-1)
    return (values_BT * part.mask_BT[:, 1:]).sum(dim=1)


def rmu_losses(
    updated: PreTrainedModel, frozen: PreTrainedModel, batch: Batch, add_noise: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Forget and retain loss of RMU with RNA."""
    u_D = control(updated.config.hidden_size, updated.device)
    with torch.no_grad():
        frozen_BTD = hidden(frozen, batch.retain)
    forget = mean_square(hidden(updated, batch.forget) - C * u_D, batch.forget)
    return forget, mean_square(hidden(updated, batch.retain) - add_noise(frozen_BTD), batch.retain)


def npo_losses(
    updated: PreTrainedModel, frozen: PreTrainedModel, batch: Batch, add_noise: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Forget and retain loss of NPO with KL and RNA."""

    def noised(_module: object, _args: object, output: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        return (add_noise(output[0]), *output[1:]) if isinstance(output, tuple) else add_noise(output)

    with torch.no_grad():
        reference_B = log_likelihoods(log_probabilities(frozen, batch.forget), batch.forget)
        hook = decoder_layers(frozen)[LAYER].register_forward_hook(noised)
        expected_BTV = log_probabilities(frozen, batch.retain)
        hook.remove()
    ratio_B = log_likelihoods(log_probabilities(updated, batch.forget), batch.forget) - reference_B
    forget = -2 / BETA * torch.nn.functional.logsigmoid(-BETA * ratio_B).mean()
    log_p_BTV = log_probabilities(updated, batch.retain)
    divergence_BT = (expected_BTV.exp() * (expected_BTV - log_p_BTV)).sum(dim=-1) * batch.retain.mask_BT
    return forget, (divergence_BT.sum(dim=1) / batch.retain.mask_BT.sum(dim=1)).mean()


LOSSES = {"rmu": (rmu_losses, ALPHA), "npo": (npo_losses, ALPHA_NPO)}


def train_plainly(
    updated: PreTrainedModel,
    frozen: PreTrainedModel,
    batches: Iterable[Batch],
    nu: float,
    *,
    everything: bool = True,
    method: str = "rmu",
) -> list[tuple[float, float]]:
    """A method with RNA; returns forget and retain loss of each step.

    With `everything`, gradients of every parameter are computed, as in the published code; else of the three matrices.
    """
    losses_of, alpha = LOSSES[method]
    updated.requires_grad_(everything)
    matrices = [decoder_layers(updated)[i].get_parameter("mlp.down_proj.weight") for i in range(LAYER - 2, LAYER + 1)]
    for matrix in matrices:
        matrix.requires_grad_(True)
    optimizer = torch.optim.AdamW(matrices, **OPTIMIZER, fused=True)
    losses = []
    for batch in batches:
        batch = batch.to(updated.device)
        augment = Augmentation(RNA(nu), SEED)
        noise = partial(augment, mask_BT=batch.retain.mask_BT, topic=batch.topic, step=batch.step)
        forget, retain = losses_of(updated, frozen, batch, noise)
        (forget + alpha * retain).backward()
        optimizer.step()
        updated.zero_grad()
        losses.append((forget.item(), retain.item()))
    return losses
