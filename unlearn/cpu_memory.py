"""Memory of large tensors on a CPU, without a page fault for every 4 KiB each time that one is made."""

from __future__ import annotations

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # names of glibc's mallopt
LARGE = 1 << 30


def reuse_memory() -> None:
    """Keep freed memory in the process, and take huge pages. Call it before the first tensor is made.

    Half of the time of an elementwise operation on an MLP's activations is page faults otherwise. Where the C library
    is not glibc or huge pages are switched off, nothing happens.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read by torch's allocator once, at its first call
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):
        return
    mallopt(M_MMAP_THRESHOLD, LARGE)
    mallopt(M_TRIM_THRESHOLD, LARGE)
