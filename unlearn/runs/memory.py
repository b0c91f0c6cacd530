"""The memory that runs in one process need: whether it is there, and whether activations are recomputed for it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from transformers import PreTrainedModel

from unlearn.config.schema import Config
from unlearn.errors import UserError
from unlearn.methods.make import needs_logits
from unlearn.models.loading import Source, load_config
from unlearn.models.memory import all_memory, free_memory
from unlearn.training.cost import Memory, Shape, likelihood_memory, training_memory

RESERVE = 0.1  # share of the free memory that is kept free, since the estimate is rough
TOO_HIGH = 0.15  # by which the estimate of training may exceed what is needed

Lengths = list[list[int]]  # of each topic's parts of a batch: the longest row, in tokens (`Inputs.lengths`)


def needed_memory(
    configs: Sequence[Config], shape: Shape, *, weight_bytes: int, recompute: bool, lengths: Lengths | None = None
) -> Memory:
    """The estimate for runs that agree in `SHARED`, without `lengths` for those that are configured.

    `recompute` matters to methods that need logits only.
    """
    first = configs[0]
    lengths = lengths or _configured_lengths(first)
    tokens = first.train.batch_size * max(map(sum, lengths))
    eager = (first.model.attn_implementation or shape.kernel) == "eager"
    pairs = first.train.batch_size * max(sum(n * n for n in parts) for parts in lengths) if eager else 0
    precision = "master" if any(c.train.precision == "master" for c in configs) else "model"
    estimate = training_memory
    if any(needs_logits(c.method) for c in configs):
        estimate = partial(likelihood_memory, recompute=recompute)
    return estimate(shape, tokens, weight_bytes=weight_bytes, precision=precision, pairs=pairs)


def _configured_lengths(config: Config) -> Lengths:
    """The most that rows of the forget, the retain and, if there are any, the preferred texts can have."""
    topics = [config.data.topics[name] for name in config.data.use or config.data.topics]
    preferred = [max(t.max_length for t in topics)] if config.method.get("preferred") else []
    return [[t.max_length, t.retain_max_length or t.max_length, *preferred] for t in topics]


def least_memory(configs: Sequence[Config], source: Source, lengths: Lengths | None = None) -> Memory:
    """`needed_memory` of a checkpoint, its activations recomputed unless that is forbidden.

    Raises UserError if the model's configuration cannot be read, or its layers hold nothing to train.
    """
    first = configs[0]
    shape = Shape.of(load_config(source), first.model.layer, first.model.parameters)
    recompute = first.train.recompute != "never"
    itemsize = source.torch_dtype.itemsize
    return needed_memory(configs, shape, weight_bytes=itemsize, recompute=recompute, lengths=lengths)


def check_training_memory(config: Config, source: Source, lengths: Lengths) -> None:
    """Raise UserError if the memory of the device cannot hold the training of this run alone.

    Models with code of their own are not checked, as that code would have to run.
    """
    if source.trust_remote_code:
        return
    needed = least_memory([config], source, lengths).total(1)
    available = all_memory(source.torch_device)
    if (1 - TOO_HIGH) * needed > available:
        raise UserError(
            f"train: about {needed / 1e9:.1f} GB are needed, and {source.torch_device} has {available / 1e9:.1f} GB. "
            "Lower train.batch_size or data.topics.TOPIC.max_length, or set model.dtype=bfloat16."
        )


def must_recompute(configs: Sequence[Config], model: PreTrainedModel, lengths: Lengths, made: int) -> bool:
    """`train.recompute`; if it is auto, whether these runs would not fit otherwise.

    Their whole model is loaded, and their variants have `made` bytes.
    """
    chosen = configs[0].train.recompute
    if chosen != "auto" or not any(needs_logits(c.method) for c in configs):
        return chosen == "always"
    shape = Shape.of(model.config, configs[0].model.layer, configs[0].model.parameters)
    needed = needed_memory(configs, shape, weight_bytes=model.dtype.itemsize, recompute=False, lengths=lengths)
    return needed.total(len(configs)) - needed.weights - made > usable(model.device)


def usable(device: torch.device) -> int:
    """Bytes of the free memory that may be used."""
    return int((1 - RESERVE) * free_memory(device))
