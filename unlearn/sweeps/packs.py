"""Which jobs of a sweep can share a process, and how many of them fit into its memory."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from unlearn.config.identity import run_folder
from unlearn.config.schema import Config, unshared
from unlearn.errors import UserError

log = logging.getLogger(__name__)


def groups_that_share(configs: Mapping[int, Config]) -> list[list[int]]:
    """Groups of jobs that agree in `SHARED`, by their numbers, in their order."""
    groups: list[list[int]] = []
    for number, config in configs.items():
        group = next((g for g in groups if not any(unshared(configs[g[0]], config))), None)
        if group is None:
            groups.append([number])
        else:
            group.append(number)
    return groups


def packs(configs: Mapping[int, Config], pack_size: int | None) -> list[list[int]]:
    """The jobs of each process, by their numbers: at most `pack_size`, or as many as fit into memory.

    Jobs of one run's folder count as one and stay together: in two processes one of them would find it locked.
    Raises UserError if `pack_size` is no positive number.
    """
    if pack_size is not None and pack_size < 1:
        raise UserError(f"hydra.launcher.pack_size={pack_size} is not allowed: it must be an integer >= 1 or null.")
    parts = []
    for group in groups_that_share(configs):
        runs = list(by_run({i: configs[i] for i in group}).values())
        size = pack_size or fitting([configs[same[0]] for same in runs])
        parts += [[number for same in runs[i : i + size] for number in same] for i in range(0, len(runs), size)]
    return parts


def by_run(configs: Mapping[int, Config]) -> dict[Path, list[int]]:
    """The jobs of each run's folder, by their numbers, in their order."""
    runs: dict[Path, list[int]] = {}
    for number, config in configs.items():
        runs.setdefault(run_folder(config), []).append(number)
    return runs


def fitting(configs: Sequence[Config]) -> int:
    """How many of these runs, which agree in `SHARED`, the device's free memory holds together; at least 1."""
    from unlearn.models.loading import Source
    from unlearn.runs.memory import least_memory, usable

    source = Source.of(configs[0].model)
    try:
        need = least_memory(configs, source)
    except UserError:  # the run itself will report it
        return len(configs)
    return max(1, min(len(configs), need.variants(usable(source.torch_device))))
