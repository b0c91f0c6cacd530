"""Which jobs of a sweep can share a process, how many of them fit, and running them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import torch

from unlearn.cost import Shape, training_memory
from unlearn.errors import UserError
from unlearn.experiment import make_source, run_together
from unlearn.model import load_config
from unlearn.schema import Config, unshared

RESERVE = 0.1  # of the free memory, for what the estimate does not know


def packs(configs: Mapping[int, Config], pack_size: int | None) -> list[list[int]]:
    """Numbers of the jobs for each process, in their order: those that agree in `SHARED`, at most `pack_size`.

    Raises UserError if `pack_size` is no positive number.
    """
    if pack_size is not None and pack_size < 1:
        raise UserError(f"hydra.launcher.pack_size={pack_size} is not allowed: it must be an integer >= 1 or null.")
    groups: list[list[int]] = []
    for number, config in configs.items():
        group = next((g for g in groups if not any(unshared(configs[g[0]], config))), None)
        if group is None:
            groups.append([number])
        else:
            group.append(number)
    found = []
    for group in groups:
        size = pack_size or fitting([configs[i] for i in group])
        found += [group[i : i + size] for i in range(0, len(group), size)]
    return found


def fitting(configs: Sequence[Config]) -> int:
    """How many of these runs, alike in `SHARED`, the device's free memory holds together; at least 1."""
    first = configs[0]
    source = make_source(first)
    try:
        shape = Shape.of(load_config(source), first.model.layer, first.model.parameters)
    except UserError:  # the run itself will say so, in its place
        return len(configs)
    topics = [first.data.topics[name] for name in first.data.use or first.data.topics]
    tokens = first.train.batch_size * max(t.max_length + (t.retain_max_length or t.max_length) for t in topics)
    precision = "master" if any(c.train.precision == "master" for c in configs) else "model"
    need = training_memory(shape, tokens, weight_bytes=source.torch_dtype.itemsize, precision=precision)
    on_gpu = source.torch_device.type == "cuda"
    free = torch.cuda.mem_get_info(source.torch_device)[0] if on_gpu else psutil.virtual_memory().available
    return max(1, min(len(configs), need.variants(int((1 - RESERVE) * free))))


def run_pack(jobs: Sequence[tuple[Config, Path]]) -> list[Path | Exception]:
    """Run these configurations, each with Hydra's folder, in this process: for each its folder or its error."""
    try:
        outcomes = run_together([config for config, _ in jobs], [folder for _, folder in jobs])
    except Exception as error:
        return [error] * len(jobs)
    return [outcome.error or outcome.folder for outcome in outcomes]
