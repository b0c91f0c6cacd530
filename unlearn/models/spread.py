"""`model.device=balanced`: accelerate spreads the layers of a model over all GPUs, the CPU and the disk.

Layers on the CPU or the disk are offloaded: each is loaded onto a GPU while it runs.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

from accelerate.hooks import AlignDevicesHook, SequentialHook
from accelerate.utils import named_module_tensors, set_module_tensor_to_device
from torch import nn
from transformers import PreTrainedModel

from unlearn.models.replay import owners


def placement(max_memory: Mapping[Any, str] | None, folder: str) -> dict[str, Any]:
    """Arguments for `from_pretrained`. Weights that have to be rewritten for offloading go to `folder`."""
    limits = {int(k) if str(k).isdecimal() else k: size for k, size in max_memory.items()} if max_memory else None
    return {"device_map": "balanced", "max_memory": limits, "offload_folder": folder}


def prepare(model: PreTrainedModel, folder: tempfile.TemporaryDirectory[str]) -> None:
    """Remove the folder when the model is deleted, and load the embeddings permanently: inputs go to their device."""
    weakref.finalize(model, folder.cleanup)
    _load(model.get_input_embeddings())


def keep_loaded(model: nn.Module, names: Iterable[str]) -> None:
    """Load the modules with these parameters permanently, so that the parameters can be read and replaced."""
    for module in owners(model, names):
        _load(module)


def _load(module: nn.Module) -> None:
    hook = getattr(module, "_hf_hook", None)
    for part in hook.hooks if isinstance(hook, SequentialHook) else [hook]:
        if isinstance(part, AlignDevicesHook) and part.offload:
            for name, _ in list(named_module_tensors(module, recurse=part.place_submodules)):
                if part.weights_map is not None and name in part.weights_map:
                    value = part.weights_map[name]
                    set_module_tensor_to_device(module, name, part.execution_device, value=value)
            part.offload = False
