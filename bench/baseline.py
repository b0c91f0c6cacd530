"""Representation misdirection written plainly: what our code is measured against.

Two whole models with their heads, a hook at layer l, and gradients of every parameter, as the published code has it.
Otherwise at its best: fused attention, no graph for the frozen model, a fused optimizer on the three matrices only.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bench.shapes import ALPHA, LAYER, OPTIMIZER, SEED, C, control
from unlearn.data.batches import Batch, Padded
from unlearn.methods.rna import augment
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


def train_plainly(
    updated: PreTrainedModel, frozen: PreTrainedModel, batches: Iterable[Batch], nu: float, *, everything: bool = True
) -> list[tuple[float, float]]:
    """RMU with RNA; returns forget and retain loss of each step.

    With `everything`, gradients of every parameter are computed, as in the published code; else of the three matrices.
    """
    updated.requires_grad_(everything)
    matrices = [decoder_layers(updated)[i].get_parameter("mlp.down_proj.weight") for i in range(LAYER - 2, LAYER + 1)]
    for matrix in matrices:
        matrix.requires_grad_(True)
    optimizer = torch.optim.AdamW(matrices, **OPTIMIZER, fused=True)
    u_D = control(updated.config.hidden_size, updated.device)
    losses = []
    for batch in batches:
        forget_part, retain_part = batch.forget.to(updated.device), batch.retain.to(updated.device)
        with torch.no_grad():
            frozen_BTD = hidden(frozen, retain_part)
        target_BTD = augment(frozen_BTD, retain_part.mask_BT, batch.topic, batch.step, nu=nu, scale="std", seed=SEED)
        forget = mean_square(hidden(updated, forget_part) - C * u_D, forget_part)
        retain = mean_square(hidden(updated, retain_part) - target_BTD, retain_part)
        (forget + ALPHA * retain).backward()
        optimizer.step()
        updated.zero_grad()
        losses.append((forget.item(), retain.item()))
    return losses
