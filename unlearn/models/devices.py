"""The GPUs that this process may use."""

from __future__ import annotations

import os
from itertools import takewhile

VISIBLE = "CUDA_VISIBLE_DEVICES"


def count_gpus() -> int:
    """The number of GPUs that CUDA shows this process."""
    import torch

    return torch.cuda.device_count()


def visible_devices() -> list[str]:
    """The GPUs that this process may use, by number or name, as in CUDA_VISIBLE_DEVICES."""
    listed, count = os.environ.get(VISIBLE), count_gpus()
    if listed is None:
        return [str(number) for number in range(count)]
    # CUDA also stops at the first entry that it cannot read. Of several parts of a GPU it shows a process only one.
    names = list(takewhile(is_device, (name.strip() for name in listed.split(","))))
    parts = any(name.startswith("MIG-") for name in names)
    return names if parts or not count else names[:count]


def is_device(name: str) -> bool:
    """Whether this is a device in the form of CUDA_VISIBLE_DEVICES: a number or a name."""
    return name.isdecimal() or name.startswith(("GPU-", "MIG-"))
