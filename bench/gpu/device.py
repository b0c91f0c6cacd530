"""Models on the device, its GEMM rate, its memory."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from functools import partial

import torch
from transformers import AutoModel, AutoModelForCausalLM, MistralConfig, PreTrainedModel

from bench import shapes

GEMM_S = 1.0  # seconds that each shape of matrix is multiplied


def build(config: MistralConfig, device: torch.device, head: bool = True) -> PreTrainedModel:
    """A model with random weights, made on the device: bfloat16 on a GPU, float32 on a CPU."""
    with torch.device(device):
        torch.manual_seed(shapes.SEED)
        model = (AutoModelForCausalLM if head else AutoModel).from_config(config, dtype=dtype_of(device))
    return model.eval().requires_grad_(False)


def dtype_of(device: torch.device) -> torch.dtype:
    """The dtype that is measured."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def release(device: torch.device) -> None:
    """Free what is not used any more, and begin to count the peak anew."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gb(device: torch.device) -> float | None:
    """The allocator's peak in GB; None on a CPU."""
    return torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds until the device is done."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def gemm_rate(config: MistralConfig, device: torch.device, tokens: int) -> float:
    """FLOP/s of the fastest of a few matrix products: those of the MLP for so many tokens, and a large square one."""
    hidden, inner = config.hidden_size, config.intermediate_size
    square = 2 * hidden
    rates = []
    for n, k, m in ((tokens, hidden, inner), (tokens, inner, hidden), (square, square, square)):
        a = torch.randn(n, k, device=device, dtype=dtype_of(device))
        b = torch.randn(k, m, device=device, dtype=dtype_of(device))
        for _ in range(3):
            torch.mm(a, b)
        once = seconds_of(partial(torch.mm, a, b), device)
        count = max(3, min(200, int(GEMM_S / once)))
        taken = seconds_of(partial(_repeat, count, a, b), device)
        rates.append(2 * n * k * m * count / taken)
    return max(rates)


def _repeat(count: int, a: torch.Tensor, b: torch.Tensor) -> None:
    for _ in range(count):
        torch.mm(a, b)
