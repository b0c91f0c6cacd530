"""Memory: batches that are made smaller when it runs out, and large CPU tensors without page faults."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import psutil
import torch
from accelerate.utils.memory import should_reduce_batch_size

from unlearn.errors import UserError

Rows = TypeVar("Rows", bound=Sequence | torch.Tensor)
Result = TypeVar("Result")

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # names of glibc's mallopt
LARGE = 1 << 30

# Of control groups: which controllers a line of /proc/self/cgroup names, the folder below /sys/fs/cgroup, the files
# with the limit and what is used, and what memory.stat calls pages of files that can be dropped.
V2 = ("", "", "memory.max", "memory.current", ("inactive_file", "active_file"))
V1 = (
    "memory",
    "memory",
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_inactive_file", "total_active_file"),
)


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
    """Bytes that are free now: of the GPU, or of the machine and this process's control groups."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min([psutil.virtual_memory().available, *(free for _, free in group_memory())])


def all_memory(device: torch.device) -> int:
    """Bytes that this process could have: of a GPU what others leave, on a CPU all of the machine or control group."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return min([psutil.virtual_memory().total, *(limit for limit, _ in group_memory())])


def group_memory(root: Path = Path("/")) -> Iterator[tuple[int, int]]:
    """For each control group around this process that limits memory: its limit, and what is free of it, in bytes.

    Containers and jobs of SLURM are such groups. Where there are none, it yields nothing.
    """
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            for controller, folder, limit, used, droppable in (V2, V1):
                if controller in controllers.split(","):
                    own = root / "sys/fs/cgroup" / folder / path.lstrip("/")
                    # Inside of a container the path may be the host's; its own group is then the topmost folder.
                    for group in (own, *own.parents):
                        yield from _of_group(group, limit, used, droppable)


def _of_group(group: Path, limit: str, used: str, droppable: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    with suppress(OSError, ValueError):  # no such group, or "max"
        most = int((group / limit).read_text())
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        taken = int((group / used).read_text()) - sum(int(statistics.get(name, 0)) for name in droppable)
        yield most, max(0, most - taken)


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
