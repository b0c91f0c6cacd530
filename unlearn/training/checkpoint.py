"""Checkpoints of a variant. Training that is resumed from one gives the same bits as uninterrupted training.

`checkpoint.safetensors` holds weights.NAME (the trained matrices, the float32 master copies where there are such),
optimizer.N.KEY (AdamW's moments and step count of the N-th matrix) and objective.KEY (control vectors, adaptive
coefficients); its metadata the steps done. There is no generator's state: noise and control vectors are drawn from
generators that are keyed by seed, topic, step and row (`methods/randomness.py`), and batches by the step.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unlearn.errors import UserError
from unlearn.models.delta import METADATA
from unlearn.storage.files import replacing
from unlearn.training.variant import Progress, Variant


def save_checkpoint(file: Path, variant: Variant) -> None:
    """Replace the last checkpoint once this one is complete. Raises OSError if the disk is full."""
    tensors = {f"weights.{name}": w for name, w in variant.weights.items()}
    for number, state in variant.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{key}": value for key, value in state.items()}
    tensors |= {f"objective.{key}": value for key, value in variant.objective.state().items()}
    stored = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    with replacing(file) as scratch:
        try:
            save_file(stored, scratch, {METADATA: json.dumps(asdict(variant.progress))})
        except SafetensorError as error:  # safetensors turns an OSError into this
            raise OSError(str(error)) from error


@torch.no_grad()
def load_checkpoint(file: Path, variant: Variant) -> None:
    """Bring a fresh variant to where `save_checkpoint` was called.

    Raises UserError for a file that cannot be read or belongs to another variant; the variant is then as before.
    """
    try:
        with safe_open(file, framework="pt") as stored:
            progress = Progress(**json.loads(stored.metadata()[METADATA]))
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no dict
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file}: not a readable checkpoint ({error}).") from error
    weights = _below(tensors, "weights.")
    expected = {f"objective.{key}" for key in variant.objective.state()}
    if _kinds(weights) != _kinds(variant.weights) or not expected <= tensors.keys():
        raise UserError(f"{file}: a checkpoint of other matrices ({', '.join(weights)}) or another objective.")
    for name, w in variant.weights.items():
        w.copy_(weights[name])
    states: dict[int, dict[str, Tensor]] = {}
    for name, value in _below(tensors, "optimizer.").items():
        number, _, key = name.partition(".")
        states.setdefault(int(number), {})[key] = value
    variant.optimizer.load_state_dict(variant.optimizer.state_dict() | {"state": states})
    variant.objective.restore(_below(tensors, "objective."))
    variant.progress = progress


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _kinds(tensors: dict[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (t.shape, t.dtype) for name, t in tensors.items()}
