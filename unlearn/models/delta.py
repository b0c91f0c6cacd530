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
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from unlearn.errors import UserError
from unlearn.models.spread import keep_loaded
from unlearn.screen import say
from unlearn.storage.files import write_atomically

REPLACES = "replaces."
METADATA = "unlearn"  # a single JSON entry: safetensors does not keep the order of several
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # safetensors' and torch's names


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
    in_dtype = {name: w.to(frozen[name].dtype) for name, w in weights.items()}
    write_delta(file, {**in_dtype, **state}, {name: sha256(w) for name, w in frozen.items()}, metadata)


def write_delta(
    file: Path, tensors: Mapping[str, Tensor], replaces: Mapping[str, str], metadata: Mapping[str, str]
) -> None:
    """Write matrices and state as they are; `replaces` has the SHA-256 of each matrix that is replaced."""
    hashes = {f"{REPLACES}{name}": digest for name, digest in replaces.items()}
    described = json.dumps({**metadata, **hashes}, sort_keys=True)
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(file, save(on_cpu, {METADATA: described}))


def load_delta(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The changed matrices, without control vectors, and the metadata. Raises UserError for a file that is none."""
    with _opened(file) as (stored, names, metadata):
        return {name: stored.get_tensor(name) for name in names}, metadata


@contextmanager
def _opened(file: Path) -> Iterator[tuple[Any, list[str], dict[str, str]]]:
    """An open delta, the names of its matrices, and the metadata.

    Raises UserError if there is no such file, if it is cut short, or if its matrices are not those that its metadata
    names, in one dtype.
    """
    if not file.is_file():
        raise UserError(f"{file}: there is no such file. The folder of a finished run has one.")
    try:
        opened = safe_open(file, framework="pt")
    except SafetensorError as error:
        raise UserError(f"{file}: not a readable delta, perhaps cut short: {error}") from None
    with opened as stored:
        metadata = _metadata(file, stored.metadata())
        names = [key.removeprefix(REPLACES) for key in metadata if key.startswith(REPLACES)]
        missing = sorted(set(names) - set(stored.keys()))
        if not names or missing:
            problem = f"{missing[0]} is missing" if missing else "it names no matrix"
            raise UserError(f"{file}: not a delta of this package: {problem}.")
        dtypes = {str(stored.get_slice(name).get_dtype()): name for name in names}
        if len(dtypes) > 1 or not dtypes.keys() <= DTYPES.keys():
            listed = ", ".join(f"{dtype} ({name})" for dtype, name in sorted(dtypes.items()))
            raise UserError(f"{file}: its matrices must all have one of the dtypes {', '.join(DTYPES)}, not {listed}.")
        yield stored, names, metadata


def _metadata(file: Path, entries: Mapping[str, str] | None) -> dict[str, str]:
    try:
        metadata = json.loads((entries or {}).get(METADATA, "{}"))
    except (ValueError, RecursionError):
        metadata = None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise UserError(f"{file}: its metadata are not those of a delta.")
    return metadata


def dtype_of(file: Path) -> str:
    """The dtype of a delta's matrices and so of the trained model, for example bfloat16.

    Raises UserError if there is no such file, or if it is no delta.
    """
    with _opened(file) as (stored, names, _):
        return DTYPES[stored.get_slice(names[0]).get_dtype()]


def load_state(file: Path) -> dict[str, Tensor]:
    """The control vectors of a delta, and the values that the method measured."""
    with _opened(file) as (stored, names, _):
        return {name: stored.get_tensor(name) for name in stored.keys() if name not in names}  # noqa: SIM118


def check_delta(model: nn.Module, weights: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Raise UserError if the model lacks a parameter of the delta or has one of another shape.

    With `metadata`, also if a replaced matrix differs. Matrices to replace that are offloaded are loaded permanently.
    Values that are not finite are named: the model's answers will not be, either.
    """
    parameters = dict(model.named_parameters())
    for name, w in weights.items():
        if name not in parameters:
            raise UserError(f"the model has no parameter {name!r}: the delta belongs to another model.")
        if w.shape != parameters[name].shape:
            shapes = f"{tuple(w.shape)}, in the model {tuple(parameters[name].shape)}"
            raise UserError(f"{name} has the shape {shapes}: the delta belongs to another model, or is damaged.")
        if not w.isfinite().all():
            say(f"The delta's {name} has values that are not finite (NaN or infinite).")
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
