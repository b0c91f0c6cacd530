"""Quantisation by a library, bitsandbytes, as people run models: its kernels compute, on a GPU or a CPU."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from unlearn.attacks.attack import Change, Victim, check_levels
from unlearn.errors import UserError, nearest
from unlearn.models.architectures import decoder_layers

FOUR_BITS = ("nf4", "fp4")
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # a line for each product of a float32 model


@dataclass(frozen=True)
class Quantization(Change):
    """The decoder layers' linear modules in 8 bits (LLM.int8) or 4 (`four_bits`: nf4 or fp4).

    Embeddings, the head, norms, and experts that are one tensor stay, as in transformers' own use of the library.
    """

    levels: Sequence[int]
    four_bits: str
    level = "{:g} bits"

    def __post_init__(self) -> None:
        check_levels(self.levels, "8 and 4", lambda x: x in (8, 4))
        if self.four_bits not in FOUR_BITS:
            told = nearest(str(self.four_bits), FOUR_BITS)
            raise UserError(f"attack.four_bits={self.four_bits} is not allowed.{told} Allowed: {', '.join(FOUR_BITS)}.")

    def why_not(self, victim: Victim) -> str | None:
        """The library may be missing, or the model have no module that it replaces (GPT-2's are of another class)."""
        if find_spec("bitsandbytes") is None:
            return "it needs bitsandbytes (pip install 'unlearn[quantization]')"
        return None if _linear(victim.model) else "the decoder layers have no torch.nn.Linear"

    def uses(self, victim: Victim) -> dict[str, Any]:
        """The library's version."""
        from bitsandbytes import __version__

        return {"bitsandbytes": __version__}

    def stages(self, victim: Victim) -> Generator[float, None, None]:
        """Bits."""
        for bits in self.levels:
            with quantized(victim.model, bits, self.four_bits):
                yield bits


@contextmanager
def quantized(model: PreTrainedModel, bits: int, four_bits: str = "nf4") -> Iterator[None]:
    """Inside the block, the decoder layers' linear modules are quantised ones; the originals wait on the CPU."""
    originals = _linear(model)
    device = model.device
    try:
        for name, linear in originals.items():
            linear.to("cpu")
            decoder_layers(model).set_submodule(name, _quantized(linear, bits, four_bits).to(device))
        yield
    finally:
        for name, linear in originals.items():
            decoder_layers(model).set_submodule(name, linear.to(device))


def _linear(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """The linear modules of the decoder layers, by name."""
    return {name: module for name, module in decoder_layers(model).named_modules() if type(module) is nn.Linear}


def _quantized(linear: nn.Linear, bits: int, four_bits: str) -> nn.Module:
    """A module that quantises its weights, in the default blocks, when it moves to its device."""
    from bitsandbytes.nn import Int8Params, Linear4bit, Linear8bitLt, Params4bit

    shape, weight = (linear.in_features, linear.out_features), linear.weight.data
    made: Any
    if bits == 8:
        made = Linear8bitLt(*shape, bias=False, has_fp16_weights=False, threshold=6.0)
        made.weight = Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    else:
        made = Linear4bit(*shape, bias=False, compute_dtype=weight.dtype, quant_type=four_bits)
        made.weight = Params4bit(weight, requires_grad=False, quant_type=four_bits)
        # Where a CPU has bfloat16, the library would pack weights for it: with other rounding, and not of every width.
        made.support_avx512bf16_for_cpu = False
    made.bias = linear.bias
    return made.requires_grad_(False)
