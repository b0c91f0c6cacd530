"""A language model from a checkpoint: whole for evaluation and export, up to layer l for training."""

from __future__ import annotations

import json
import re
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from huggingface_hub import constants
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import cached_file

from unlearn.errors import UserError
from unlearn.models.architectures import decoder_layers
from unlearn.models.fusing import fuse


class SourceSettings(Protocol):
    """What `Source.of` reads: the keys of a model's configuration that say where it is and how to load it."""

    path: str
    revision: str | None
    gguf_file: str | None
    trust_remote_code: bool
    attn_implementation: str | None
    compile: bool
    dtype: str
    device: str


@dataclass(frozen=True)
class Source:
    """Where a model comes from and how it is to be loaded.

    `path` is a hub id or a local folder; `gguf_file` the name of a GGUF file in it; `dtype` "auto" is bfloat16 on
    a GPU and float32 on a CPU; `device` "auto" is cuda where there is one; `compile` is for `unlearn.models.fusing`.
    """

    path: str
    revision: str | None = None
    gguf_file: str | None = None
    trust_remote_code: bool = False
    attn_implementation: str | None = None
    compile: bool = False
    dtype: str = "auto"
    device: str = "auto"

    @classmethod
    def of(cls, settings: SourceSettings) -> Source:
        """The source that a model's configuration describes."""
        return cls(**{field.name: getattr(settings, field.name) for field in fields(cls)})

    @property
    def torch_device(self) -> torch.device:
        """The device that `device` stands for here. Raises UserError for one that is not here."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        here = [
            "cpu",
            *(["cuda", *(f"cuda:{i}" for i in range(count))] if (count := torch.cuda.device_count()) else []),
        ]
        here += ["mps"] if torch.backends.mps.is_available() else []
        if self.device not in here:
            raise UserError(
                f"model.device={self.device}: there is no such device here. Allowed: auto, {', '.join(here)}."
            )
        return torch.device(self.device)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype that `dtype` stands for on this device."""
        if self.dtype == "auto":
            return torch.float32 if self.torch_device.type == "cpu" else torch.bfloat16
        return getattr(torch, self.dtype)

    def origin(self) -> dict[str, Any]:
        """Keyword arguments for `from_pretrained` that select the files."""
        kwargs: dict[str, Any] = {"revision": self.revision, "trust_remote_code": self.trust_remote_code}
        if self.gguf_file is not None:
            kwargs["gguf_file"] = self.gguf_file
        return kwargs


def load_config(source: Source) -> transformers.PretrainedConfig:
    """The model's own configuration. Raises UserError if there is none at `source.path`."""
    if Path(source.path).is_absolute() and not Path(source.path).is_dir():
        raise UserError(f"model.path={source.path}: there is no such folder.")
    try:
        return AutoConfig.from_pretrained(source.path, **source.origin())
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"model.path={source.path}: cannot read a model's configuration there: {error}") from error


def load_tokenizer(source: Source) -> transformers.PreTrainedTokenizerBase:
    """The model's tokenizer. Raises UserError if there is none at `source.path`."""
    try:
        return AutoTokenizer.from_pretrained(source.path, **source.origin())
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"model.path={source.path}: cannot read a tokenizer there: {error}") from error


def check_weights(source: Source, layer: int | None) -> None:
    """Raise UserError if weight files are missing and cannot be fetched: those up to `layer`, or all (None).

    It is called before training, which needs only a part of the files that the evaluation will need.
    """
    folder = Path(source.path)
    if source.gguf_file is not None or not (folder.is_dir() or constants.HF_HUB_OFFLINE):
        return
    index_file = _cached(source, "model.safetensors.index.json")
    shards = {"model.safetensors"}
    if index_file is not None:
        weight_map = json.loads(Path(index_file).read_text())["weight_map"]
        shards = {shard for tensor, shard in weight_map.items() if layer is None or _needed(tensor, layer)}
    missing = sorted(shard for shard in shards if _cached(source, shard) is None)
    if missing and _cached(source, "pytorch_model.bin") is None:
        advice = "" if folder.is_dir() else " `unlearn prefetch` fetches all that a job needs."
        raise UserError(f"model.path={source.path}: weight files are missing: {', '.join(missing)}.{advice}")


def _cached(source: Source, name: str) -> str | None:
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
    """The whole language model, for evaluation and export: in eval mode, nothing requires gradients."""
    return _placed(_from_pretrained(AutoModelForCausalLM, source.path, source, **source.origin()), source)


def load_up_to(source: Source, layer: int) -> transformers.PreTrainedModel:
    """The model without head, up to and including `layer`: later layers are neither read nor stored.

    The shards of a checkpoint that hold nothing but later layers are not even downloaded. A GGUF file is always
    converted whole by transformers; its later layers are then dropped.
    """
    if source.gguf_file is not None:
        model = _from_pretrained(AutoModel, source.path, source, **source.origin())
        del decoder_layers(model)[layer + 1 :]
        _keep_layers(model.config, layer + 1)
    else:
        config = load_config(source)
        _keep_layers(config, layer + 1)
        with tempfile.TemporaryDirectory() as scratch:
            folder = _pruned_checkpoint(source, layer, Path(scratch))
            origin = {} if folder != source.path else source.origin()
            model = _from_pretrained(AutoModel, folder, source, config=config, **origin)
    return _placed(model, source)


def _placed(model: transformers.PreTrainedModel, source: Source) -> transformers.PreTrainedModel:
    """The model on its device, in eval mode; nothing requires gradients."""
    if source.torch_device.type == "cuda":
        # cuDNN's attention prepares a plan for every new shape. Batches of an evaluation and steps of a generation have
        # many: MaxLogit of 1000 questions took 22 s with it and 10 s without (docs/benchmarks.md).
        torch.backends.cuda.enable_cudnn_sdp(False)
    model.to(source.torch_device).eval().requires_grad_(False)
    if source.compile:
        fuse(model)
    return model


def _from_pretrained(cls: type, path: str, source: Source, **kwargs: Any) -> transformers.PreTrainedModel:
    if source.attn_implementation is not None:
        kwargs["attn_implementation"] = source.attn_implementation
    if source.gguf_file is not None:  # plain matrices, to be trained and saved, not GGUF's packed blocks
        kwargs["quantization_config"] = transformers.GgufConfig(dequantize=True)
    with _quiet_transformers():
        try:
            return cls.from_pretrained(path, dtype=source.torch_dtype, **kwargs)  # type: ignore[attr-defined]
        except (OSError, ValueError, ImportError) as error:
            raise UserError(f"model.path={source.path}: cannot load the model: {error}") from error


@contextmanager
def _quiet_transformers():
    """Silence warnings about layers that are left out on purpose, and progress bars."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        transformers.logging.enable_progress_bar()


def _keep_layers(config: transformers.PretrainedConfig, count: int) -> None:
    """Cut every list in `config` that has an entry for each layer, and the number of layers."""
    whole = config.num_hidden_layers
    for name, value in vars(config).items():
        if isinstance(value, list) and len(value) == whole and name in ("layer_types", "mlp_layer_types"):
            setattr(config, name, value[:count])
    config.num_hidden_layers = count


def _pruned_checkpoint(source: Source, layer: int, scratch: Path) -> str:
    """A folder with links to the shards that hold layers 0 .. `layer`; `source.path` where there is no index."""
    index_file = _cached(source, "model.safetensors.index.json")
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
    numbered = re.search(r"\.(\d+)\.", tensor)
    return int(numbered[1]) <= layer if numbered else not tensor.startswith("lm_head.")
