"""The memory that runs in one process need: whether it is available, and whether activations must be recomputed."""

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

RESERVE = 0.1  # share of the free memory that is kept free, because the estimate is rough
TOO_HIGH = 0.15  # share by which the estimate for training may be too high

Lengths = list[list[int]]  # for each topic, the longest row of each part of a batch, in tokens (`Inputs.lengths`)


def needed_memory(
    configs: Sequence[Config], shape: Shape, *, weight_bytes: int, recompute: bool, lengths: Lengths | None = None
) -> Memory:
    """The estimate for runs that agree in `SHARED`. Without `lengths`, the configured maxima are used.

    `recompute` matters only for methods that need logits.
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
    """The configured maxima of the lengths of forget, retain and, if there are any, preferred texts."""
    topics = [config.data.topics[name] for name in config.data.use or config.data.topics]
    preferred = [max(t.max_length for t in topics)] if config.method.get("preferred") else []
    return [[t.max_length, t.retain_max_length or t.max_length, *preferred] for t in topics]


def least_memory(configs: Sequence[Config], source: Source, lengths: Lengths | None = None) -> Memory:
    """`needed_memory` of a checkpoint. Activations are recomputed unless `train.recompute` forbids it.

    Raises UserError if the model's configuration cannot be read, or its layers have nothing to train.
    """
    first = configs[0]
    shape = Shape.of(load_config(source), first.model.layer, first.model.parameters)
    recompute = first.train.recompute != "never"
    itemsize = source.torch_dtype.itemsize
    return needed_memory(configs, shape, weight_bytes=itemsize, recompute=recompute, lengths=lengths)


def check_training_memory(config: Config, source: Source, lengths: Lengths) -> None:
    """Raise UserError if the memory of the device cannot hold the training of this run alone.

    Models with their own code are not checked, because their code would have to run.
    """
    if source.trust_remote_code:
        return
    needed = least_memory([config], source, lengths).total(1)
    available = all_memory(source.torch_device)
    if (1 - TOO_HIGH) * needed > available:
        raise UserError(
            f"train: this needs about {needed / 1e9:.1f} GB, but {source.torch_device} has {available / 1e9:.1f} GB. "
            "Lower train.batch_size or data.topics.TOPIC.max_length, or set model.dtype=bfloat16."
        )


def must_recompute(configs: Sequence[Config], model: PreTrainedModel, lengths: Lengths, made: int) -> bool:
    """Whether to recompute activations: by `train.recompute`, or if that is auto and the runs would not fit otherwise.

    The whole model is loaded, and the variants take `made` bytes already.
    """
    chosen = configs[0].train.recompute
    if chosen != "auto" or not any(needs_logits(c.method) for c in configs):
        return chosen == "always"
    shape = Shape.of(model.config, configs[0].model.layer, configs[0].model.parameters)
    needed = needed_memory(configs, shape, weight_bytes=model.dtype.itemsize, recompute=False, lengths=lengths)
    return needed.total(len(configs)) - needed.weights - made > usable(model.device)


def usable(device: torch.device) -> int:
    """The part of the free memory that may be used, in bytes."""
    return int((1 - RESERVE) * free_memory(device))
