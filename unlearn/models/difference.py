"""What two checkpoints of one architecture differ in: which parameters, and by how much.

The parameters are read one at a time from the safetensors files of both. Where a checkpoint has no such files, or names
in them that are not the model's own, the whole model is loaded.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PretrainedConfig

from unlearn.errors import UserError
from unlearn.models.architectures import decoder_layers, layer_count, without_weights
from unlearn.models.delta import sha256
from unlearn.models.loading import Source, cached, load_config, load_tokenizer, load_whole
from unlearn.screen import say

ADAPTER = "adapter_config.json"
# What has to be equal: otherwise one model's matrices mean nothing in the other.
SHAPE = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size", "tie_word_embeddings")
# Entries of a configuration that say nothing about what the model computes.
ABOUT = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache", "auto_map")
ROWS = 1024  # of a matrix that are compared at a time, in float32
Read = Callable[[str], Tensor]


@dataclass(frozen=True)
class Differences:
    """The parameters in which a checkpoint differs from its base.

    Args:
        weights: full parameter name -> the checkpoint's values, in `dtype`.
        replaces: name -> SHA-256 of the base's values, in `dtype`.
        changes: name -> Frobenius norm of the difference, relative to the base's norm.
        compared: how many parameters both have.
        rounded: the parameters that one of the checkpoints holds more exactly than `dtype` can.
        layers: name -> decoder layer, of those that lie in one.
    """

    dtype: torch.dtype
    weights: dict[str, Tensor]
    replaces: dict[str, str]
    changes: dict[str, float]
    compared: int
    rounded: list[str]
    layers: dict[str, int]

    @property
    def highest_layer(self) -> int:
        """The highest decoder layer in which the checkpoints differ; 0 if there is none."""
        return max((self.layers.get(name, 0) for name in self.changes), default=0)


def is_adapter(source: Source) -> bool:
    """Whether a checkpoint is an adapter of PEFT, to be put onto its base."""
    return source.gguf_file is None and cached(source, ADAPTER) is not None


def stored_dtype(source: Source) -> torch.dtype:
    """The dtype that a checkpoint's configuration names; that of `Source` if it names none."""
    dtype = load_config(source).dtype
    return dtype if isinstance(dtype, torch.dtype) and dtype.is_floating_point else source.torch_dtype


def check_same_architecture(checkpoint: Source, base: Source) -> None:
    """Raise UserError unless both are models of one architecture, of one shape and with one vocabulary.

    Differences in other entries of the configurations, and in settings of the tokenizers, are told.
    """
    if not is_adapter(checkpoint):
        _check_configurations(checkpoint, load_config(checkpoint), load_config(base))
    try:
        tokenizer = load_tokenizer(checkpoint)
    except Exception:  # it has none, or a damaged one, of which libraries raise what they like
        return
    own, known = tokenizer.get_vocab(), load_tokenizer(base).get_vocab()
    if any(own.get(token) != number for token, number in known.items()):
        raise UserError(f"{checkpoint.path}: its tokenizer has another vocabulary than that of the base {base.path}.")
    if len(own) > len(known):
        say(f"{checkpoint.path}: its tokenizer has {len(own) - len(known)} more tokens. That of the base is used.")


def _check_configurations(checkpoint: Source, own: PretrainedConfig, base: PretrainedConfig) -> None:
    for about, config in ((checkpoint.path, own), ("the base", base)):
        if getattr(config, "quantization_config", None) is not None:
            raise UserError(f"{about}: its weights are quantised, and quantised weights cannot be compared.")
    shape, of_base = _shape(own), _shape(base)
    for key in _differing(shape, of_base):
        raise UserError(
            f"{checkpoint.path}: its {key} is {shape[key]}, the base's {of_base[key]}. Both have to be models of one "
            "architecture and shape."
        )
    differing = [key for key in _differing(own.to_dict(), base.to_dict()) if key not in ABOUT]
    if differing:
        say(f"config.json of the two differs in {', '.join(differing)}. What the base's says is used.")


def _shape(config: PretrainedConfig) -> dict[str, Any]:
    text = config.get_text_config()
    return {"model_type": config.model_type, **{key: getattr(text, key, None) for key in SHAPE}}


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    return sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))


def compare_checkpoints(checkpoint: Source, base: Source, dtype: torch.dtype) -> Differences:
    """Compare every parameter, in this dtype.

    Raises UserError for a parameter of another shape, and if nothing differs.
    """
    in_words = str(dtype).removeprefix("torch.")
    checkpoint, base = (replace(source, device="cpu", dtype=in_words) for source in (checkpoint, base))
    config = load_config(base)
    empty = without_weights(config, trust_remote_code=base.trust_remote_code)
    names = [name for name, _ in empty.named_parameters()]
    with _opened(base, names) as of_base, _opened(checkpoint, names, base) as of_checkpoint:
        found = Differences(dtype, {}, {}, {}, len(names), [], _layers(empty, config, names))
        for name in names:
            _compare(name, of_checkpoint(name), of_base(name), found)
    if not found.changes:
        rounded = f" after rounding to {in_words}" if found.rounded else ""
        raise UserError(f"{checkpoint.path}: all {len(names)} parameters are those of the base{rounded}.")
    return found


def _compare(name: str, own: Tensor, base: Tensor, found: Differences) -> None:
    """Compare one parameter, and add it to what was found."""
    if own.shape != base.shape:
        shapes = f"{tuple(own.shape)}, in the base {tuple(base.shape)}"
        raise UserError(f"{name} has the shape {shapes}: this is no pair of one shape.")
    weight, replaced = own.to(found.dtype), base.to(found.dtype)
    if not (_is_exact(weight, own) and _is_exact(replaced, base)):
        found.rounded.append(name)
    if not torch.equal(weight, replaced):
        found.weights[name], found.replaces[name] = weight, sha256(replaced)
        found.changes[name] = relative_change(weight, replaced)


def _is_exact(value: Tensor, stored: Tensor) -> bool:
    return value.dtype == stored.dtype or torch.equal(value.to(stored.dtype), stored)


def relative_change(weight: Tensor, base: Tensor) -> float:
    """The Frobenius norm of the difference, relative to that of the base; infinite where the base is zero."""
    moved = total = 0.0
    rows = (torch.atleast_2d(w).flatten(end_dim=-2).split(ROWS) for w in (weight, base))
    for a, b in zip(*rows, strict=True):
        moved += float((a.float() - b.float()).double().square().sum())
        total += float(b.double().square().sum())
    return math.sqrt(moved / total) if total else math.inf


def _layers(model: Any, config: PretrainedConfig, names: list[str]) -> dict[str, int]:
    """The decoder layer of each parameter that lies in one."""
    stack = decoder_layers(model)
    prefix = next(f"{name}." for name, module in model.named_modules() if module is stack)
    layers = {name: name.removeprefix(prefix).partition(".")[0] for name in names if name.startswith(prefix)}
    return {name: int(layer) for name, layer in layers.items() if int(layer) < layer_count(config)}


@contextmanager
def _opened(source: Source, names: list[str], base: Source | None = None) -> Iterator[Read]:
    """Inside the block, a function that reads a parameter. An adapter is put onto `base`."""
    if base is not None and is_adapter(source):
        yield _of_model(_merged(source, base))
        return
    files = _files(source)
    with ExitStack() as stack:
        by_name: dict[str, Any] = {}
        for file in files:
            opened = stack.enter_context(safe_open(file, framework="pt"))
            by_name |= dict.fromkeys(opened.keys(), opened)
        if by_name.keys() >= set(names):
            yield lambda name: by_name[name].get_tensor(name)
            return
    say(f"{source.path} is loaded as a whole: no safetensors files there hold the parameters under their own names.")
    yield _of_model(load_whole(source))


def _of_model(model: Any) -> Read:
    return lambda name: model.get_parameter(name).detach()


def _files(source: Source) -> list[Path]:
    """The safetensors files of a checkpoint; none if it has no such files."""
    if source.gguf_file is not None:
        return []
    index = cached(source, "model.safetensors.index.json")
    names = {"model.safetensors"} if index is None else {*json.loads(Path(index).read_text())["weight_map"].values()}
    files = [cached(source, name) for name in sorted(names)]
    return [Path(file) for file in files if file is not None]


def _merged(adapter: Source, base: Source) -> Any:
    """The base model with an adapter in its matrices."""
    from peft import PeftModel  # takes seconds to import

    try:
        adapted = PeftModel.from_pretrained(load_whole(base), adapter.path, revision=adapter.revision)
    except (ValueError, RuntimeError, OSError) as error:
        raise UserError(f"{adapter.path}: this adapter does not go with the base {base.path}: {error}") from error
    return adapted.merge_and_unload()


def kinds(changes: Mapping[str, float]) -> dict[str, list[str]]:
    """The names of parameters by kind: what only differs in the number of the layer is of one kind."""
    by_kind: dict[str, list[str]] = {}
    for name in changes:
        by_kind.setdefault(re.sub(r"\.\d+\.", ".*.", name), []).append(name)
    return by_kind
