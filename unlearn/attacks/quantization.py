"""Quantisation by bitsandbytes, as people run models: its kernels compute, on a GPU or a CPU.

What was hidden by small changes of the weights may come back when quantisation rounds these away (Zhang et al.,
"Catastrophic Failure of LLM Unlearning via Quantization", 2024).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from unlearn.attacks.attack import Change, Target, check_levels
from unlearn.attacks.matrices import is_plain_linear, layer_modules, share_of
from unlearn.errors import UserError, nearest

FOUR_BITS = ("nf4", "fp4")


@dataclass(frozen=True)
class Quantization(Change):
    """The decoder layers' linear modules in 8 bits (LLM.int8) or 4 (`four_bits`: nf4 or fp4).

    Embeddings, head, norms, and experts that are one tensor stay, as in transformers' own use of the library.
    """

    levels: Sequence[int]
    four_bits: str
    level = "{:g} bits"

    def __post_init__(self) -> None:
        check_levels(self.levels, "8 and 4", lambda x: x in (8, 4))
        if self.four_bits not in FOUR_BITS:
            meant = nearest(str(self.four_bits), FOUR_BITS)
            raise UserError(
                f"attack.four_bits={self.four_bits} is not allowed.{meant} Allowed: {', '.join(FOUR_BITS)}."
            )

    def obstacle(self, target: Target) -> str | None:
        """The library may be missing, or not quantise what unlearning changed."""
        if find_spec("bitsandbytes") is None:
            return "it needs bitsandbytes (pip install 'unlearn-rna[attacks]')"
        quantised, trained = set(_linear(target.model)), target.unlearning.trained
        if not quantised:
            return "the decoder layers have no torch.nn.Linear, which is all that bitsandbytes quantises"
        if trained and not any(name.removesuffix(".weight") in quantised for name in trained):
            share = f"{quantised_share(target.model):.0%} of the decoder layers' weights"
            return f"bitsandbytes would quantise {share}, and none of the matrices that unlearning changed"
        return None

    def remark(self, target: Target) -> str | None:
        """The quantised share, where it is not all."""
        share = quantised_share(target.model)
        if share == 1:
            return None
        trained, quantised = target.unlearning.trained, _linear(target.model)
        reached = sum(name.removesuffix(".weight") in quantised for name in trained)
        of_trained = f", and {reached} of the {len(trained)} matrices that unlearning changed" if trained else ""
        return f"bitsandbytes quantises {share:.0%} of the decoder layers' weights{of_trained}"

    def depends_on(self, target: Target) -> dict[str, Any]:
        """The library's version."""
        from bitsandbytes import __version__

        return {"bitsandbytes": __version__}

    def stages(self, target: Target) -> Generator[float, None, None]:
        """The model in each number of bits."""
        for bits in self.levels:
            with quantized(target.model, bits, self.four_bits):
                yield bits


def quantised_share(model: PreTrainedModel) -> float:
    """The share of the entries of the decoder layers' matrices that are quantised."""
    return share_of(model, (f"{name}.weight" for name in _linear(model)))


@contextmanager
def quantized(model: PreTrainedModel, bits: int, four_bits: str = "nf4") -> Iterator[None]:
    """Inside the block, the decoder layers' linear modules are quantised ones; the originals wait on the CPU."""
    originals = _linear(model)
    device = model.device
    try:
        for name, linear in originals.items():
            linear.to("cpu")
            model.set_submodule(name, _quantized(linear, bits, four_bits).to(device))
        yield
    finally:
        for name, linear in originals.items():
            model.set_submodule(name, linear.to(device))


def _linear(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """The decoder layers' linear modules by full name."""
    return {name: module for name, module in layer_modules(model).items() if is_plain_linear(module)}


def _quantized(linear: nn.Linear, bits: int, four_bits: str) -> nn.Module:
    """A module that quantises its weights, in the default blocks, when it moves to its device."""
    from bitsandbytes.nn import Int8Params, Linear4bit, Linear8bitLt, Params4bit

    shape, weight = (linear.in_features, linear.out_features), linear.weight.data
    module: Any
    if bits == 8:
        module = Linear8bitLt(*shape, bias=False, has_fp16_weights=False, threshold=6.0)
        module.weight = Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    else:
        module = Linear4bit(*shape, bias=False, compute_dtype=weight.dtype, quant_type=four_bits)
        module.weight = Params4bit(weight, requires_grad=False, quant_type=four_bits)
        # Where a CPU has bfloat16, the library would pack weights for it: with other rounding, and not of every width.
        module.support_avx512bf16_for_cpu = False
    module.bias = linear.bias
    return module.requires_grad_(False)
