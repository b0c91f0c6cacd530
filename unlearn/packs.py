"""Which jobs of a sweep can share a process, how many of them fit, and running them."""

from __future__ import annotations

import gc
import logging
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from unlearn.errors import UserError, describe
from unlearn.schema import Config, unshared
from unlearn.sweep import Sweep

log = logging.getLogger(__name__)
RESERVE = 0.1  # of the free memory, for what the estimate does not know


def alike(configs: Mapping[int, Config]) -> list[list[int]]:
    """Numbers of the jobs that agree in `SHARED`, group by group, in their order."""
    groups: list[list[int]] = []
    for number, config in configs.items():
        group = next((g for g in groups if not any(unshared(configs[g[0]], config))), None)
        if group is None:
            groups.append([number])
        else:
            group.append(number)
    return groups


def packs(configs: Mapping[int, Config], pack_size: int | None) -> list[list[int]]:
    """Numbers of the jobs for each process: those that are `alike`, at most `pack_size`, or as many as will fit.

    Raises UserError if `pack_size` is no positive number.
    """
    if pack_size is not None and pack_size < 1:
        raise UserError(f"hydra.launcher.pack_size={pack_size} is not allowed: it must be an integer >= 1 or null.")
    found = []
    for group in alike(configs):
        size = pack_size or fitting([configs[i] for i in group])
        found += [group[i : i + size] for i in range(0, len(group), size)]
    return found


def fitting(configs: Sequence[Config]) -> int:
    """How many of these runs, alike in `SHARED`, the device's free memory holds together; at least 1."""
    import psutil
    import torch

    from unlearn.cost import Shape, training_memory
    from unlearn.experiment import make_source
    from unlearn.model import load_config

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


def run_packed(
    sweep: Sweep, numbers: Sequence[int], pack_size: int | None = None, task: str | None = None
) -> dict[int, Path | Exception]:
    """Run these jobs of a sweep in this process, which is a SLURM task or none: for each its folder or its error.

    Pack by pack; errors are noted in the sweep's folder as well.
    """
    import torch

    from unlearn.experiment import run_together

    found: dict[int, Path | Exception] = {}
    configs: dict[int, Config] = {}
    for number in numbers:
        sweep.keep_error(number, task, None)
        try:
            configs[number] = sweep.config(number)
        except Exception as error:
            found[number] = error
    for pack in packs(configs, pack_size):
        log.info(f"Jobs in one process: {', '.join(f'#{i}' for i in pack)}")
        try:
            hydra_folders = [Path(str(sweep.jobs[i].hydra_folder)) for i in pack]
            outcomes = run_together([configs[i] for i in pack], hydra_folders)
            found |= {i: o.error or o.folder for i, o in zip(pack, outcomes, strict=True)}
        except Exception as error:
            found |= dict.fromkeys(pack, error)
        for outcome in (found[i] for i in pack):
            if isinstance(outcome, Exception):  # its traceback would keep models in memory while the next pack runs
                traceback.clear_frames(outcome.__traceback__)
        gc.collect()
        torch.cuda.empty_cache()
    for number, outcome in found.items():
        if isinstance(outcome, Exception):
            sweep.keep_error(number, task, describe(outcome))
            if not isinstance(outcome, UserError):
                traceback.print_exception(outcome)
    return found
