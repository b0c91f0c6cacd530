"""One model in memory, cut in three: prefix (layers 0 .. l-3), span (l-2 .. l), and, for evaluation only, the rest.

The frozen and the updated model differ in a few matrices of the span. So the prefix runs once for both, the
frozen model is the span with its original matrices, and an updated model is the span with other ones.

To cut a model of any architecture, the calls into the span's layers are recorded while the prefix runs (hidden
states, mask, position embeddings, ...) and replayed. B batch, T tokens, D hidden size.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.func import functional_call
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import cached_file

from unlearn.errors import UserError

# Names of the MLP's down projection inside a decoder layer, by architecture; the first that exists is trained.
DOWN_PROJECTIONS = (
    "mlp.down_proj.weight",  # Llama, Mistral, Qwen, Gemma, OLMo 2, Phi-3
    "mlp.dense_4h_to_h.weight",  # GPT-NeoX
    "mlp.c_proj.weight",  # GPT-2
    "mlp.experts.down_proj",  # Mixtral, Qwen-MoE: one fused tensor for all experts
    "mlp.fc2.weight",  # Phi
    "fc2.weight",  # OPT
)


@dataclass(frozen=True)
class Source:
    """Where a model comes from and how it is to be loaded.

    `path` is a hub id or a local folder; `gguf_file` the name of a GGUF file in it; `dtype` "auto" is bfloat16 on
    a GPU and float32 on a CPU; `device` "auto" is cuda where there is one.
    """

    path: str
    revision: str | None = None
    gguf_file: str | None = None
    trust_remote_code: bool = False
    attn_implementation: str | None = None
    dtype: str = "auto"
    device: str = "auto"

    @property
    def torch_device(self) -> torch.device:
        """The device that `device` stands for here."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype that `dtype` stands for on this device."""
        if self.dtype == "auto":
            return torch.float32 if self.torch_device.type == "cpu" else torch.bfloat16
        return getattr(torch, self.dtype)

    def origin(self) -> dict[str, Any]:
        """Keyword arguments that name the same files to every `from_pretrained`."""
        kwargs: dict[str, Any] = {"revision": self.revision, "trust_remote_code": self.trust_remote_code}
        if self.gguf_file is not None:
            kwargs["gguf_file"] = self.gguf_file
        return kwargs


def load_config(source: Source) -> transformers.PretrainedConfig:
    """The model's own configuration. Raises UserError if there is none at `source.path`."""
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


def load_whole(source: Source) -> transformers.PreTrainedModel:
    """The whole language model, for evaluation and export: in eval mode, nothing requires gradients."""
    model = _from_pretrained(AutoModelForCausalLM, source.path, source, **source.origin())
    return model.to(source.torch_device).eval().requires_grad_(False)


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
    return model.to(source.torch_device).eval().requires_grad_(False)


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
    """No warnings about layers that are left out on purpose, no bars beside our own."""
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
    index_file = cached_file(
        source.path,
        "model.safetensors.index.json",
        revision=source.revision,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
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
    """Whether a checkpoint's tensor belongs to what runs up to `layer`."""
    numbered = re.search(r"\.(\d+)\.", tensor)
    return int(numbered[1]) <= layer if numbered else not tensor.startswith("lm_head.")


def decoder_layers(model: transformers.PreTrainedModel) -> nn.ModuleList:
    """The list of decoder layers: the one ModuleList with as many entries as the model has layers."""
    count = model.config.num_hidden_layers
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not stacks:
        raise UserError(f"{type(model).__name__} has no list of {count} decoder layers: it cannot be cut.")
    return stacks[0]


def parameter_names(layer: nn.Module, wanted: list[str] | None) -> list[str]:
    """Names, inside a decoder layer, of the parameters to train.

    Raises UserError, listing the layer's parameters, if a wanted name does not exist or no default applies.
    """
    existing = [name for name, _ in layer.named_parameters()]
    if wanted is None:
        wanted = [name for name in DOWN_PROJECTIONS if name in existing][:1]
    missing = [name for name in wanted if name not in existing]
    if missing or not wanted:
        problem = f"no parameter {missing[0]!r}" if missing else "no MLP down projection of a known name"
        raise UserError(
            f"model.parameters: a decoder layer of this model has {problem}. Its parameters: {', '.join(existing)}."
        )
    return list(wanted)


class _Recorder(nn.Module):
    """Stands in for a decoder layer: keeps the call it gets and hands the hidden states on."""

    def __init__(self, layer: nn.Module, output_is_tuple: bool) -> None:
        super().__init__()
        object.__setattr__(self, "_layer", layer)  # not a submodule: the layer is put back later
        self.output_is_tuple = output_is_tuple
        self.call: _Call | None = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # models read attributes of their layers, such as attention_type
            return getattr(object.__getattribute__(self, "_layer"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden_BTD = kwargs.pop("hidden_states") if "hidden_states" in kwargs else args[0]
        self.call = _Call(hidden_BTD, args[1:], kwargs)
        return (hidden_BTD,) if self.output_is_tuple else hidden_BTD


@dataclass(frozen=True)
class _Call:
    """The arguments of one decoder layer's call."""

    hidden_BTD: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class CutModel:
    """Prefix and span of a model; `weights` below is always {full parameter name: tensor}.

    Full names are those of the whole language model, for example `model.layers.7.mlp.down_proj.weight`.
    """

    def __init__(
        self, model: transformers.PreTrainedModel, layer: int, span: int = 3, parameters: list[str] | None = None
    ) -> None:
        self.model, self.layer = model, layer
        self._stack = decoder_layers(model)
        self._span = range(layer - span + 1, layer + 1)
        stack_name = next(name for name, module in model.named_modules() if module is self._stack)
        head_less = not hasattr(model, "lm_head") and model.get_output_embeddings() is None
        prefix = f"{model.base_model_prefix}." if head_less and model.base_model_prefix else ""
        self._names = {
            number: {n: f"{prefix}{stack_name}.{number}.{n}" for n in parameter_names(self._stack[number], parameters)}
            for number in self._span
        }
        self._output_is_tuple = self._check()

    @property
    def dim(self) -> int:
        """D."""
        return self.model.config.get_text_config().hidden_size

    @property
    def device(self) -> torch.device:
        """Where inputs have to be."""
        return next(self.model.parameters()).device

    @property
    def frozen(self) -> dict[str, Tensor]:
        """The original matrices: {full name: tensor}, in the model's dtype."""
        return {
            full: self._stack[number].get_parameter(short).detach()
            for number, names in self._names.items()
            for short, full in names.items()
        }

    @torch.no_grad()
    def prefix(self, ids_BT: Tensor, attention_mask_BT: Tensor | None = None) -> list[_Call]:
        """Run layers 0 .. l-3 once and record the calls into the span's layers.

        `attention_mask_BT` may be left out where padding is on the right: real tokens do not see it.
        """
        originals = {number: self._stack[number] for number in self._span}
        recorders = {n: _Recorder(layer, self._output_is_tuple) for n, layer in originals.items()}
        try:
            for number, recorder in recorders.items():
                self._stack[number] = recorder
            self.model(input_ids=ids_BT, attention_mask=attention_mask_BT, use_cache=False)
        finally:
            for number, original in originals.items():
                self._stack[number] = original
        calls = [recorder.call for recorder in recorders.values()]
        assert all(call is not None for call in calls)
        return calls  # type: ignore[return-value]

    def span(self, calls: list[_Call], weights: Mapping[str, Tensor]) -> Tensor:
        """h at layer l, [B, T, D], with `weights` in place of the span's own matrices.

        Gradients reach only `weights`. Weights of another dtype (a float32 master copy) are cast on the way.
        """
        h_BTD = calls[0].hidden_BTD
        for number, call in zip(self._span, calls, strict=True):
            layer = self._stack[number]
            swapped = {s: weights[full].to(h_BTD.dtype) for s, full in self._names[number].items()}
            output = functional_call(layer, swapped, (h_BTD, *call.args), call.kwargs)
            h_BTD = output[0] if self._output_is_tuple else output
        return h_BTD

    @torch.no_grad()
    def _check(self) -> bool:
        """Compare cut and whole on a few tokens; returns whether layers of this model return tuples."""
        seen: list[Any] = []
        hook = self._stack[self.layer].register_forward_hook(lambda _module, _args, output: seen.append(output))
        ids_BT = torch.arange(2, 10, device=self.device).view(2, 4)
        try:
            self.model(input_ids=ids_BT, use_cache=False)
        finally:
            hook.remove()
        self._output_is_tuple = isinstance(seen[0], tuple)
        whole_BTD = seen[0][0] if self._output_is_tuple else seen[0]
        cut_BTD = self.span(self.prefix(ids_BT), self.frozen)
        if not torch.equal(cut_BTD, whole_BTD):
            worst = (cut_BTD - whole_BTD).abs().max().item()
            raise UserError(
                f"{type(self.model).__name__} cannot be cut at layer {self.layer}: replaying its layers gives "
                f"other hidden states than the whole model (largest difference {worst:.3g})."
            )
        return self._output_is_tuple
