"""The delta, the part of its model that a run saves: the changed matrices, the control vectors, and metadata.

`delta.safetensors` holds {full parameter name: matrix in the model's dtype}, {control.TOPIC: float32 [D]} and the
values that a method measured. The metadata names the base model and the SHA-256 of each matrix that the delta replaces.
Equal runs write equal bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from unlearn.errors import UserError
from unlearn.models.spread import keep_loaded
from unlearn.storage.files import write_atomically

REPLACES = "replaces."
METADATA = "unlearn"  # a single JSON entry: safetensors does not keep the order of several


def sha256(tensor: Tensor) -> str:
    """Hash of dtype, shape and bytes."""
    digest = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_delta(
    file: Path,
    weights: Mapping[str, Tensor],
    frozen: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    metadata: Mapping[str, str],
) -> None:
    """Write the changed matrices, cast to the dtype of those they replace, and the objective's state."""
    tensors = {name: w.detach().to(frozen[name].dtype).cpu().contiguous() for name, w in weights.items()}
    tensors |= {name: value.detach().cpu().contiguous() for name, value in state.items()}
    hashes = {f"{REPLACES}{name}": sha256(w) for name, w in frozen.items()}
    described = json.dumps({**metadata, **hashes}, sort_keys=True)
    write_atomically(file, save(tensors, {METADATA: described}))


def load_delta(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The changed matrices, without control vectors, and the metadata. Raises UserError if there is no such file."""
    with _opened(file) as (stored, names, metadata):
        return {name: stored.get_tensor(name) for name in names}, metadata


@contextmanager
def _opened(file: Path) -> Iterator[tuple[Any, list[str], dict[str, str]]]:
    """An open delta, the names of its matrices, and the metadata."""
    if not file.is_file():
        raise UserError(f"{file}: there is no such file. The folder of a finished run has one.")
    with safe_open(file, framework="pt") as stored:
        metadata = json.loads((stored.metadata() or {}).get(METADATA, "{}"))
        yield stored, [key.removeprefix(REPLACES) for key in metadata if key.startswith(REPLACES)], metadata


def dtype_of(file: Path) -> str:
    """The dtype of a delta's matrices and so of the trained model, for example bfloat16.

    Raises UserError if there is no such file.
    """
    with _opened(file) as (stored, names, _):
        return str(stored.get_slice(names[0])[:1].dtype).removeprefix("torch.")


def load_state(file: Path) -> dict[str, Tensor]:
    """The control vectors of a delta, and the values that the method measured."""
    weights, _ = load_delta(file)
    with safe_open(file, framework="pt") as stored:
        return {name: stored.get_tensor(name) for name in stored.keys() if name not in weights}  # noqa: SIM118


def check_delta(model: nn.Module, weights: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Raise UserError if the model lacks a parameter of the delta or, with `metadata`, if a replaced matrix differs.

    Matrices to replace that are offloaded are loaded permanently.
    """
    parameters = {name for name, _ in model.named_parameters()}
    for name in weights:
        if name not in parameters:
            raise UserError(f"the model has no parameter {name!r}: the delta belongs to another model.")
    keep_loaded(model, weights)
    for name, w in weights.items():
        expected = (metadata or {}).get(f"{REPLACES}{name}")
        if expected is not None and sha256(model.get_parameter(name).to(w.dtype)) != expected:
            raise UserError(f"{name}: the delta was made for another matrix. Is this another base model?")


@torch.no_grad()
def apply_delta(model: nn.Module, weights: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Check a delta (`check_delta`), then replace the matrices of a whole language model in place."""
    check_delta(model, weights, metadata)
    parameters = dict(model.named_parameters())
    for name, w in weights.items():
        parameters[name].copy_(w)


@contextmanager
def replaced(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside the block, a whole model has these matrices in place of its own. Nothing is copied."""
    parameters = {name: model.get_parameter(name) for name in weights}
    originals = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.data = weights[name].detach().to(parameter)
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = originals[name]
