"""The available memory, and batches that shrink when memory runs out."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import TypeVar

import psutil
import torch
from accelerate.utils.memory import should_reduce_batch_size

from unlearn.errors import UserError

Rows = TypeVar("Rows", bound=Sequence | torch.Tensor)
Result = TypeVar("Result")


def free_memory(device: torch.device) -> int:
    """The free bytes of the GPU or, for other devices, of the machine."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def all_memory(device: torch.device) -> int:
    """The bytes that this process could use: what other processes leave of a GPU, or all of the machine's memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return psutil.virtual_memory().total


def in_batches(function: Callable[[Rows], Result], rows: Rows, size: int) -> tuple[list[Result], int]:
    """Apply `function` to at most `size` rows at a time, and halve `size` whenever memory runs out.

    Results of earlier batches are kept. accelerate's `find_executable_batch_size` recognises the same errors, but it
    starts over and collects garbage before every call, which takes longer than a batch of a small model.

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
            message = str(error)
        # After the except block: within it, the traceback keeps the tensors of the failed attempt alive.
        if size == 1:
            raise UserError(f"Out of memory, even with one row per batch: {message}")
        gc.collect()
        torch.cuda.empty_cache()
        size = max(1, min(size, len(rows) - start) // 2)
    return results, size
