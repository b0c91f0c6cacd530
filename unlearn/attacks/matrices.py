"""The matrices of a model's decoder layers: which there are, how they lie, and how they are restored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from unlearn.models.architectures import decoder_layers

LINEAR = (nn.Linear, Conv1D)
TRANSPOSED = ("Conv1D", "Llama4TextExperts")  # classes of transformers whose weights are [inputs, outputs]


def layer_modules(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The decoder layers' modules by full name."""
    inside = set(decoder_layers(model).modules())
    return {name: module for name, module in model.named_modules() if module in inside}


def weight_matrices(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """The decoder layers' matrices by full name, those of several experts as one tensor. Biases are none."""
    return {
        f"{name}.{parameter_name}": parameter
        for name, module in layer_modules(model).items()
        for parameter_name, parameter in module.named_parameters(recurse=False)
        if parameter.dim() >= 2 and not parameter_name.endswith("bias")
    }


def linear_modules(model: PreTrainedModel) -> list[str]:
    """Full names of the decoder layers' linear modules. Subclasses, such as routers with other outputs, are none."""
    return [name for name, module in layer_modules(model).items() if type(module) in LINEAR]


def expert_tensors(model: PreTrainedModel) -> list[str]:
    """Full names of the parameters [experts, ., .] that hold the matrices of several experts."""
    return [
        f"{name}.{parameter_name}"
        for name, module in layer_modules(model).items()
        if not isinstance(module, _ConvNd)
        for parameter_name, parameter in module.named_parameters(recurse=False)
        if parameter.dim() == 3
    ]


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
