"""Random generators keyed by what they are for.

Noise and control vectors are drawn on the CPU from generators whose seed is a hash of their key, so that they
depend neither on the device, nor on padding, nor on what else runs in the process, and no state needs saving.
"""

from __future__ import annotations

import hashlib
import json

import torch


def generator(*key: str | int) -> torch.Generator:
    """A CPU generator for this key, for example (seed, "noise", topic, step, row); the same key, the same draws."""
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
