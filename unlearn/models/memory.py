"""Memory: batches that are made smaller when it runs out, and large CPU tensors without page faults."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable, Sequence
from typing import TypeVar

import psutil
import torch
from accelerate.utils.memory import should_reduce_batch_size

from unlearn.errors import UserError

Rows = TypeVar("Rows", bound=Sequence | torch.Tensor)
Result = TypeVar("Result")

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # names of glibc's mallopt
LARGE = 1 << 30


def reuse_memory() -> None:
    """Keep freed memory in the process, and take huge pages. Call it before the first tensor is made.

    Without it, page faults take half of the time of an elementwise operation on an MLP's activations. Where the C
    library is not glibc or huge pages are switched off, nothing happens.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read by torch's allocator once, at its first call
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):
        return
    mallopt(M_MMAP_THRESHOLD, LARGE)
    mallopt(M_TRIM_THRESHOLD, LARGE)


def free_memory(device: torch.device) -> int:
    """Bytes that are free now: of the GPU, or of the machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def all_memory(device: torch.device) -> int:
    """Bytes that this process could have: of a GPU what others leave, on a CPU all that the machine has."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return psutil.virtual_memory().total


def in_batches(function: Callable[[Rows], Result], rows: Rows, size: int) -> tuple[list[Result], int]:
    """Apply `function` to at most `size` rows at a time, and halve `size` whenever memory runs out.

    Results of earlier batches are kept. accelerate's `find_executable_batch_size` recognises the same errors, but it
    starts over, and it collects garbage before every call, which takes longer than a batch of a small model.

    Returns:
        The results in order, and the batch size that was used last.

    Raises:
        UserError: memory runs out for a single row.
    """
    results: list[Result] = []
    start = 0
    while start < len(rows):
        try:
            results.append(function(rows[start : start + size]))  # type: ignore[arg-type]
            start += size
            continue
        except RuntimeError as error:
            if not (isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)):
                raise
            told = str(error)
        # Outside of the except block: the exception's traceback holds the tensors of the failed attempt.
        if size == 1:
            raise UserError(f"out of memory with a batch of one row: {told}")
        gc.collect()
        torch.cuda.empty_cache()
        size = max(1, min(size, len(rows) - start) // 2)
    return results, size
