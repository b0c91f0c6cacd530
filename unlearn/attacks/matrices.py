"""The matrices of a model's decoder layers: which there are, how they lie, and how they are restored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from unlearn.models.architectures import decoder_layers

TRANSPOSED = ("Conv1D", "Llama4TextExperts", "RecurrentGemmaRglru")  # classes whose weights are [inputs, outputs]
NO_MATRIX = ("A_log",)  # parameters of two dimensions that multiply nothing: Mamba's decay rates


def layer_modules(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The decoder layers' modules by full name."""
    inside = set(decoder_layers(model).modules())
    return {name: module for name, module in model.named_modules() if module in inside}


def weight_matrices(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """The decoder layers' matrices by full name, those of several experts as one tensor.

    Biases are none, nor are norms and other vectors, whatever the number of their dimensions.
    """
    return {
        f"{name}.{parameter_name}": parameter
        for name, module in layer_modules(model).items()
        for parameter_name, parameter in module.named_parameters(recurse=False)
        if _is_matrix(module, parameter_name, parameter)
    }


def _is_matrix(module: nn.Module, name: str, parameter: Tensor) -> bool:
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)) or name.endswith(("bias", *NO_MATRIX)) or parameter.dim() < 2:
        return False
    return isinstance(module, _ConvNd) or min(parameter.shape[-2:]) > 1


def linear_modules(model: PreTrainedModel) -> list[str]:
    """Full names of the decoder layers' linear modules. Those that compute more, as some routers do, are none."""
    modules = layer_modules(model).items()
    return [name for name, module in modules if type(module) is Conv1D or is_plain_linear(module)]


@torch.no_grad()
def is_plain_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module computes what nn.Linear does. That of a subclass with a forward of its own is tried."""
    if not isinstance(module, nn.Linear):
        return False
    if type(module).forward is nn.Linear.forward:
        return True
    rows_RI = torch.ones(2, module.in_features).to(module.weight)
    rows_RI[1, ::2] = -1
    try:
        output = module(rows_RI)
    except (TypeError, ValueError, RuntimeError, IndexError):
        return False
    expected_RO = nn.functional.linear(rows_RI, module.weight, module.bias)
    is_same_shape = isinstance(output, Tensor) and output.shape == expected_RO.shape
    return is_same_shape and torch.allclose(output, expected_RO, rtol=1e-2, atol=1e-3)


def expert_tensors(model: PreTrainedModel) -> list[str]:
    """Full names of the parameters [experts, ., .] that hold the matrices of several experts."""
    return [
        f"{name}.{parameter_name}"
        for name, module in layer_modules(model).items()
        if not isinstance(module, _ConvNd)
        for parameter_name, parameter in module.named_parameters(recurse=False)
        if parameter.dim() == 3 and _is_matrix(module, parameter_name, parameter)
    ]


def share_of(model: PreTrainedModel, names: Iterable[str]) -> float:
    """The share that these matrices have of the entries of the decoder layers' matrices."""
    matrices = weight_matrices(model)
    total = sum(matrix.numel() for matrix in matrices.values())
    return sum(matrices[name].numel() for name in set(names) & matrices.keys()) / total


def rows_by_output(weight: Tensor, module: nn.Module) -> list[Tensor]:
    """Views of a module's weight as matrices [outputs, inputs]; of transposed experts, a matrix for each."""
    transposed = getattr(module, "is_transposed", False) or type(module).__name__ in TRANSPOSED
    if not transposed:
        return [weight.view(-1, weight.shape[-1])]
    return [matrix.T for matrix in weight.view(-1, *weight.shape[-2:])]


@contextmanager
def restored(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Behind the block the parameters have their values again, which wait on the CPU, and require no gradients."""
    originals = [(parameter, parameter.data.to("cpu", copy=True)) for parameter in parameters]
    try:
        yield
    finally:
        for parameter, original in originals:
            parameter.requires_grad_(False).grad = None
            parameter.data.copy_(original)
