"""A language model from a checkpoint: whole for evaluation and export, up to layer l for training."""

from __future__ import annotations

import copy
import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from huggingface_hub import constants
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import cached_file

from unlearn.errors import UserError
from unlearn.models import spread
from unlearn.models.architectures import auto_class, decoder_layers, head_of, is_multimodal, keep_up_to, layer_count

# The beginning of the names of a tower's tensors. Deeper inside a name, these words belong to the language model.
TOWER = re.compile(r"(\w+\.){0,2}(vision|visual|audio|image)\w*\.")
BALANCED = "balanced"


class SourceSettings(Protocol):
    """The keys of a model's configuration that `Source.of` reads: where the model is and how to load it."""

    path: str
    revision: str | None
    gguf_file: str | None
    trust_remote_code: bool
    attn_implementation: str | None
    dtype: str
    device: str
    max_memory: dict[Any, str] | None


@dataclass(frozen=True)
class Source:
    """Where a model comes from and how to load it.

    Args:
        path: a hub id or a local folder.
        gguf_file: the name of a GGUF file in it.
        dtype: "auto" is bfloat16 on a GPU and float32 on a CPU.
        device: "auto" is cuda if there is a GPU; "balanced" spreads whole models over all GPUs, the CPU and the disk,
            within `max_memory`.
    """

    path: str
    revision: str | None = None
    gguf_file: str | None = None
    trust_remote_code: bool = False
    attn_implementation: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    max_memory: dict[Any, str] | None = None

    @classmethod
    def of(cls, settings: SourceSettings) -> Source:
        """The source that a model's configuration describes."""
        return cls(**{field.name: getattr(settings, field.name) for field in fields(cls)})

    @property
    def torch_device(self) -> torch.device:
        """The device that `device` stands for, the first of several. Raises UserError if this machine lacks it."""
        if self.device in ("auto", BALANCED):
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        count = torch.cuda.device_count()
        devices = ["cpu", *(["cuda"] if count else []), *(f"cuda:{i}" for i in range(count))]
        devices += ["mps"] if torch.backends.mps.is_available() else []
        if self.device not in devices:
            allowed = ", ".join(["auto", *devices, BALANCED])
            raise UserError(f"model.device={self.device}: this machine has no such device. Allowed: {allowed}.")
        return torch.device(self.device)

    def check_device(self) -> None:
        """Raise UserError if this machine lacks the device."""
        _ = self.torch_device

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype that `dtype` stands for on this device."""
        if self.dtype == "auto":
            on_cpu = self.device == "cpu" or (self.device in ("auto", BALANCED) and not torch.cuda.is_available())
            return torch.float32 if on_cpu else torch.bfloat16
        return getattr(torch, self.dtype)

    def origin(self) -> dict[str, Any]:
        """Keyword arguments for `from_pretrained` that select the files."""
        kwargs: dict[str, Any] = {"revision": self.revision, "trust_remote_code": self.trust_remote_code}
        if self.gguf_file is not None:
            kwargs["gguf_file"] = self.gguf_file
        return kwargs


def load_config(source: Source) -> transformers.PretrainedConfig:
    """The model's own configuration. Raises UserError if `source.path` has none, or not one of a decoder."""
    if Path(source.path).is_absolute() and not Path(source.path).is_dir():
        raise UserError(f"model.path={source.path}: there is no such folder.")
    with _user_errors(source, "cannot read a model's configuration there"):
        config = copy.deepcopy(_read(AutoConfig, source, _state(source)))
    try:
        layer_count(config)
    except UserError as error:
        raise UserError(f"model.path={source.path}: {error}") from None
    return config


def load_tokenizer(source: Source) -> transformers.PreTrainedTokenizerBase:
    """The model's tokenizer. Raises UserError if there is none at `source.path`."""
    with _user_errors(source, "cannot read a tokenizer there"):
        return copy.deepcopy(_read(AutoTokenizer, source, _state(source)))


@dataclass(frozen=True)
class _State:
    """Tells whether a GGUF file has changed."""

    file: Path
    size: int
    changed: int  # nanoseconds


def _state(source: Source) -> _State | None:
    """The state of the source's GGUF file; None if it has none."""
    if source.gguf_file is None or (found := cached(source, source.gguf_file)) is None:
        return None
    return _state_of(found)


def _state_of(path: str) -> _State:
    file = Path(path).resolve()
    return _State(file, file.stat().st_size, file.stat().st_mtime_ns)


def _read(auto: Any, source: Source, state: _State | None) -> Any:
    """What `auto` reads of a checkpoint. Of a GGUF file, whose header takes seconds to parse, it is kept."""
    if state is None:
        return auto.from_pretrained(source.path, **source.origin())
    files = Source(source.path, source.revision, source.gguf_file, source.trust_remote_code)
    return _read_once(auto, files, state)


@lru_cache(maxsize=4)  # a configuration and a tokenizer, of two models
def _read_once(auto: Any, source: Source, _state: _State) -> Any:
    with _headers_parsed_once():
        return auto.from_pretrained(source.path, **source.origin())


@contextmanager
def _headers_parsed_once() -> Iterator[None]:
    """transformers parses a GGUF file's header for the configuration, the tokenizer, and each load of weights anew.

    It has no way to be given one. So gguf's reader, which it looks up by name at each use, is exchanged meanwhile.
    """
    gguf: Any = import_module("gguf")
    reader = gguf.GGUFReader
    gguf.GGUFReader = lambda path: _parsed(reader, _state_of(path))
    try:
        yield
    finally:
        gguf.GGUFReader = reader


@lru_cache(maxsize=2)
def _parsed(reader: Any, state: _State) -> Any:
    return reader(state.file)


@contextmanager
def _user_errors(source: Source, problem: str) -> Iterator[None]:
    """Turn what transformers raises for a checkpoint that it cannot load into a UserError."""
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        is_code = not source.trust_remote_code and "trust_remote_code" in str(error)
        advice = " Here: model.trust_remote_code=true; for the folder of a run, --allow-code." if is_code else ""
        raise UserError(f"model.path={source.path}: {problem}: {error}{advice}") from error


def check_weights(source: Source, layer: int | None) -> None:
    """Raise UserError if weight files up to `layer` (None: of all layers) are missing and cannot be downloaded.

    It is called before training, which reads only a part of the files that the evaluation will need.
    """
    folder = Path(source.path)
    if source.gguf_file is not None or not (folder.is_dir() or constants.HF_HUB_OFFLINE):
        return
    missing = _missing(source, "model.safetensors", layer)
    # transformers also reads the older format, with pickle's safe subset, and always as a whole.
    if missing and _missing(source, "pytorch_model.bin", None):
        advice = "" if folder.is_dir() else " `unlearn prefetch` downloads everything that a job needs."
        raise UserError(f"model.path={source.path}: weight files are missing: {', '.join(missing)}.{advice}")


def _missing(source: Source, name: str, layer: int | None) -> list[str]:
    """The missing weight files: the file of this name, or the files in its index."""
    index_file = cached(source, f"{name}.index.json")
    files = {name}
    if index_file is not None:
        weight_map = json.loads(Path(index_file).read_text())["weight_map"]
        files = {file for tensor, file in weight_map.items() if layer is None or _needed(tensor, layer)}
    return sorted(file for file in files if cached(source, file) is None)


def cached(source: Source, name: str) -> str | None:
    """The local path of a file of the checkpoint, or None."""
    return cached_file(
        source.path,
        name,
        revision=source.revision,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )


def load_whole(source: Source) -> transformers.PreTrainedModel:
    """The whole model, for evaluation and export, in eval mode; nothing requires gradients.

    A multimodal model keeps its towers, which the export needs. With `source.device` "balanced" a part of the model may
    be offloaded (`unlearn.models.spread`).
    """
    config = load_config(source)
    cls, origin = auto_class(config), source.origin()
    if source.gguf_file is not None:
        origin["config"] = config
    if source.device != BALANCED:
        return _placed(_from_pretrained(cls, source.path, source, **origin), source)
    folder = tempfile.TemporaryDirectory(prefix="offloaded-")
    how = spread.placement(source.max_memory, folder.name)
    model = _from_pretrained(cls, source.path, source, **origin, **how)
    spread.prepare(model, folder)
    return _prepared(model, source)


def load_up_to(source: Source, layer: int) -> transformers.PreTrainedModel:
    """The language model without head, up to and including `layer`. Nothing else is read or stored.

    Shards that hold only later layers are not downloaded. transformers always converts a whole GGUF file.
    """
    config = load_config(source)
    cls = _cut_class(config, source, layer)
    with tempfile.TemporaryDirectory() as scratch:
        folder = _pruned_checkpoint(source, layer, Path(scratch))
        origin = {} if folder != source.path else source.origin()
        return _placed(_from_pretrained(cls, folder, source, config=config, **origin), source)


def _cut_class(config: transformers.PretrainedConfig, source: Source, layer: int) -> type:
    """A subclass of the model's class whose instances have only the parts that the states at `layer` need."""
    auto = auto_class(config) if is_multimodal(config) else AutoModel
    how: dict[str, Any] = {"trust_remote_code": source.trust_remote_code}
    if source.trust_remote_code and auto.__name__ in getattr(config, "auto_map", {}):
        how["code_revision"] = source.revision
    with torch.device("meta"), _user_errors(source, "cannot load the model"):
        cls: Any = type(auto.from_config(config, **how))

    def build(self: transformers.PreTrainedModel, *args: Any, **kwargs: Any) -> None:
        cls.__init__(self, *args, **kwargs)
        keep_up_to(self, layer)

    return type(cls.__name__, (cls,), {"__init__": build, "__module__": cls.__module__})


def _placed(model: transformers.PreTrainedModel, source: Source) -> transformers.PreTrainedModel:
    """Move the model to its device and prepare it."""
    return _prepared(model.to(source.torch_device), source)


def _prepared(model: transformers.PreTrainedModel, source: Source) -> transformers.PreTrainedModel:
    """The model in eval mode, without gradients."""
    if source.torch_device.type == "cuda":
        # cuDNN's attention prepares a plan for every new shape, and evaluation and generation have many shapes:
        # MaxLogit of 1000 questions took 22 s with it and 10 s without (docs/benchmarks.md).
        torch.backends.cuda.enable_cudnn_sdp(False)
    return model.eval().requires_grad_(False)


def _from_pretrained(cls: Any, path: str, source: Source, **kwargs: Any) -> transformers.PreTrainedModel:
    if source.attn_implementation is not None:
        kwargs["attn_implementation"] = source.attn_implementation
    if source.gguf_file is not None:  # plain matrices can be trained and saved, GGUF's packed blocks cannot
        kwargs["quantization_config"] = transformers.GgufConfig(dequantize=True)
    headers = nullcontext() if source.gguf_file is None else _headers_parsed_once()
    with _quiet_transformers(), _user_errors(source, "cannot load the model"), headers:
        model, info = cls.from_pretrained(path, dtype=source.torch_dtype, output_loading_info=True, **kwargs)
    parts = _read_parts(model)
    prefixes = tuple(f"{name}." for name, module in model.named_modules() if module in parts)
    missing = sorted(name for name in info["missing_keys"] if name.startswith(prefixes))
    if missing:  # transformers would initialise them at random
        raise UserError(f"model.path={source.path}: the checkpoint lacks {', '.join(missing[:3])}.")
    return model


def _read_parts(model: transformers.PreTrainedModel) -> list[nn.Module]:
    """The parts that compute the states and, in a model with a head, the logits.

    Other parts of a multimodal model are left out: transformers saves some under names that it does not find again.
    """
    layers, head = decoder_layers(model), head_of(model)
    parts = [layers, model.get_input_embeddings()]
    if head is not None:
        parent = next(m for m in model.modules() if layers in m.children())
        norms = [m for m in parent.children() if all(p.dim() == 1 for p in m.parameters())]
        parts += [head, *norms]
    return parts


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silence warnings about layers that are left out on purpose, and progress bars."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        transformers.logging.enable_progress_bar()


def _pruned_checkpoint(source: Source, layer: int, scratch: Path) -> str:
    """A folder with links to the shards that hold layers 0 .. `layer`; `source.path` if there is no index."""
    index_file = None if source.gguf_file else cached(source, "model.safetensors.index.json")
    if index_file is None or source.trust_remote_code:
        return source.path
    index = json.loads(Path(index_file).read_text())
    index["weight_map"] = {k: v for k, v in index["weight_map"].items() if _needed(k, layer)}
    (scratch / "model.safetensors.index.json").write_text(json.dumps(index))
    for shard in sorted(set(index["weight_map"].values())):
        file = cached_file(source.path, shard, revision=source.revision)
        assert file is not None
        (scratch / shard).symlink_to(Path(file).resolve())
    load_config(source).save_pretrained(scratch)
    return str(scratch)


def _needed(tensor: str, layer: int) -> bool:
    """Whether a tensor of the checkpoint is needed up to `layer`."""
    if TOWER.match(tensor):
        return False
    numbered = re.search(r"\.(\d+)\.", tensor)
    return int(numbered[1]) <= layer if numbered else "lm_head." not in tensor
