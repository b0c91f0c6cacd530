"""The memory that the training of some runs in one process needs, and whether activations are recomputed for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from unlearn.config.schema import Config
from unlearn.methods.make import needs_logits
from unlearn.models.memory import free_memory
from unlearn.training.cost import Memory, Shape, likelihood_memory, training_memory

RESERVE = 0.1  # share of the free memory that is kept free, since the estimate is rough


def needed_memory(configs: Sequence[Config], shape: Shape, *, weight_bytes: int, recompute: bool) -> Memory:
    """The estimate for runs that agree in `SHARED`. `recompute` matters to methods that need logits only."""
    first = configs[0]
    topics = [first.data.topics[name] for name in first.data.use or first.data.topics]
    longest = max(t.max_length + (t.retain_max_length or t.max_length) for t in topics)
    if first.method.get("preferred"):
        longest += max(t.max_length for t in topics)
    tokens = first.train.batch_size * longest
    precision = "master" if any(c.train.precision == "master" for c in configs) else "model"
    if any(needs_logits(c.method) for c in configs):
        how = {"weight_bytes": weight_bytes, "precision": precision}
        return likelihood_memory(shape, tokens, **how, recompute=recompute)  # type: ignore[arg-type]
    return training_memory(shape, tokens, weight_bytes=weight_bytes, precision=precision)


def must_recompute(configs: Sequence[Config], model: PreTrainedModel) -> bool:
    """`train.recompute`; if it is auto, whether these runs would not fit otherwise. Their whole model is loaded."""
    wish = configs[0].train.recompute
    if wish != "auto" or not any(needs_logits(c.method) for c in configs):
        return wish == "always"
    shape = Shape.of(model.config, configs[0].model.layer, configs[0].model.parameters)
    need = needed_memory(configs, shape, weight_bytes=model.dtype.itemsize, recompute=False)
    return need.total(len(configs)) - need.weights > usable(model.device)


def usable(device: torch.device) -> int:
    """Bytes of the free memory that may be used."""
    return int((1 - RESERVE) * free_memory(device))
