"""Importing torch, transformers and lm-eval, which make millions of objects."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Collect none inside the block, and later none of what was made there. Else it is nearly half of the start."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
