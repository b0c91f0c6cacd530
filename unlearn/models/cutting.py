"""One model in memory, cut in three: prefix (layers 0 .. l-3), span (l-2 .. l) and suffix (what follows).

The frozen and the updated model differ in a few matrices of the span. So the prefix runs once for both, the
frozen model is the span with its original matrices, and an updated model is the span with other ones. Layer l-2
up to its trained matrix is the same for all models, too, and also runs once. The suffix is there only if the whole
model was loaded, for methods that need logits.

To cut a model of any architecture, the calls into the span's layers are recorded while the prefix runs (hidden
states, mask, position embeddings, ...) and replayed. B batch, T tokens, D hidden size; R lines of L tokens where
the rows of a batch are packed (see `unlearn.data.packing`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from unlearn.arguments import SPAN, check_choice, check_integer
from unlearn.data.batches import padding_id
from unlearn.errors import UserError
from unlearn.models.architectures import (
    decoder_layers,
    decoders,
    head_of,
    hidden_of,
    input_device,
    is_multimodal,
    layer_count,
    parameter_names,
)
from unlearn.models.export import write_checkpoint
from unlearn.models.loading import Source, load_tokenizer, load_up_to, load_whole
from unlearn.models.reach import reach
from unlearn.models.replay import Outputs, forward_replaced, owners, recorded, replayed
from unlearn.models.spread import keep_loaded


@dataclass(frozen=True)
class Call:
    """The arguments of a call to a decoder layer, and the outputs of the modules that run before its trained matrix."""

    hidden_BTD: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    recorded: Outputs = field(default_factory=dict)


def _hidden(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The hidden states that a decoder layer is called with."""
    return kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]


def with_added(calls: list[Call], added_BTD: Tensor) -> list[Call]:
    """Calls whose first layer gets other states, so that nothing of it that was recorded holds."""
    first, *others = calls
    h_BTD = first.hidden_BTD
    return [replace(first, hidden_BTD=h_BTD + added_BTD.to(h_BTD), recorded={}), *others]


class _TrainedMatrixReached(Exception):
    pass


def _outputs_before(layer: nn.Module, trained: list[str], call: Call) -> Outputs:
    """Run a layer up to the first module with a trained parameter; return the outputs of the modules before it."""

    def stop(*_args: Any, **_kwargs: Any) -> Any:
        raise _TrainedMatrixReached

    changed = owners(layer, trained)
    stopping = forward_replaced(dict.fromkeys(changed, stop))
    with recorded(layer, changed) as outputs, stopping, suppress(_TrainedMatrixReached):
        layer(call.hidden_BTD, *call.args, **call.kwargs)
    return outputs


class CutModel:
    """A model that is cut at layer l; `weights` below is always {full parameter name: tensor}.

    Full names are those of the whole language model, for example `model.layers.7.mlp.down_proj.weight`.

    Args:
        model: a decoder of transformers, in memory. It is put into evaluation mode, and its parameters stop requiring
            gradients; nothing else about it changes.
        layer: l, counted from 0. Layers l - 2, l - 1 and l are trained, so it is at least 2.
        span: how many layers are trained.
        parameters: names of the trained matrices inside a layer; None: the MLP's down projection.
        tokenizer: the model's tokenizer, needed if texts are given as strings.
        source: where the model was loaded from.

    Raises:
        UserError: the model cannot be cut there. A few tokens are run through it to check this.
    """

    @classmethod
    def load(
        cls,
        path: str | Path,
        layer: int,
        *,
        whole: bool = True,
        parameters: list[str] | None = None,
        revision: str | None = None,
        gguf_file: str | None = None,
        trust_remote_code: bool = False,
        attn_implementation: str | None = None,
        dtype: str | torch.dtype = "auto",
        device: str = "auto",
    ) -> CutModel:
        """Load a model with its tokenizer, and cut it.

        Args:
            path: a folder, or an id of the hub.
            layer, parameters: as for `CutModel`.
            whole: False loads no layer above l. That is enough for training with methods on representations.
            revision: a commit, tag or branch of the hub's repository.
            gguf_file: the name of a GGUF file in `path`.
            trust_remote_code: allow code that comes with the checkpoint to run.
            attn_implementation: as in transformers.
            dtype: "auto" is bfloat16 on a GPU and float32 on a CPU.
            device: "auto" is cuda if there is a GPU, else cpu.

        Raises:
            UserError: there is no such model or device, or it cannot be cut at this layer.
        """
        check_integer("layer", layer, at_least=0)
        check_choice("dtype", str(dtype).removeprefix("torch."), ("auto", "float32", "bfloat16", "float16"))
        source = Source(
            str(path),
            revision=revision,
            gguf_file=gguf_file,
            trust_remote_code=trust_remote_code,
            attn_implementation=attn_implementation,
            dtype=str(dtype).removeprefix("torch."),
            device=str(device),
        )
        tokenizer = load_tokenizer(source)
        model = load_whole(source) if whole else load_up_to(source, layer)
        return cls(model, layer, parameters=parameters, tokenizer=tokenizer, source=source)

    def __init__(
        self,
        model: transformers.PreTrainedModel,
        layer: int,
        span: int = SPAN,
        parameters: list[str] | None = None,
        *,
        tokenizer: transformers.PreTrainedTokenizerBase | None = None,
        source: Source | None = None,
    ) -> None:
        self.model, self.layer, self.tokenizer, self.source = (
            model.eval().requires_grad_(False),
            layer,
            tokenizer,
            source,
        )
        self._decoders = decoders(model)
        self._stack = decoder_layers(model)
        if not span - 1 <= layer < len(self._stack):
            raise UserError(
                f"layer={layer} is not allowed: layers l-{span - 1} to l are trained and the model has layers 0 to "
                f"{len(self._stack) - 1}, so it must be in {span - 1}..{len(self._stack) - 1}."
            )
        self._later = list(self._stack)[layer + 1 :]
        self._span = range(layer - span + 1, layer + 1)
        stack_name = next(name for name, module in model.named_modules() if module is self._stack)
        head_less = not hasattr(model, "lm_head") and head_of(model) is None
        inner = head_less and not is_multimodal(model.config)  # it was loaded as the base model of the whole model
        prefix = f"{model.base_model_prefix}." if inner and model.base_model_prefix else ""
        self._names = {
            number: {n: f"{prefix}{stack_name}.{number}.{n}" for n in parameter_names(self._stack[number], parameters)}
            for number in self._span
        }
        unknown = set(parameters or []).difference(*self._names.values())
        if unknown:
            raise UserError(f"model.parameters: no layer from {self._span[0]} to {layer} has {sorted(unknown)[0]!r}.")
        for number, names in self._names.items():
            keep_loaded(self._stack[number], names)
        self._rest = self._check()
        self.packs = self._check_packing()
        if head_of(model) is not None:
            self._check_suffix()

    @property
    def dim(self) -> int:
        """Hidden size D."""
        return self.model.config.get_text_config().hidden_size

    @property
    def name(self) -> str:
        """The path or hub id of the model."""
        return self.source.path if self.source is not None else self.model.name_or_path

    @property
    def is_whole(self) -> bool:
        """Whether the model has all layers and the head."""
        return head_of(self.model) is not None and len(self._stack) == layer_count(self.model.config)

    @property
    def pad_id(self) -> int:
        """The token id of padding."""
        return padding_id(self.tokenizer, self.model.config.get_text_config().vocab_size)

    def export(self, folder: str | Path, weights: Mapping[str, Tensor]) -> None:
        """Write the whole model with `weights` in place of its matrices, and the tokenizer. See `Variant.export`."""
        if self.is_whole:
            write_checkpoint(Path(folder), self.model, weights, self.tokenizer, self.source)
        elif self.source is None:
            raise UserError("an export needs the whole model, but this one has only the layers up to l.")
        else:
            dtype = str(self.dtype).removeprefix("torch.")
            source = replace(self.source, device="cpu", dtype=dtype)
            write_checkpoint(Path(folder), load_whole(source), weights, self.tokenizer, source)

    @property
    def device(self) -> torch.device:
        """The device of the model, where inputs must be."""
        return input_device(self.model)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the model's states."""
        return self.model.dtype

    @property
    def frozen(self) -> dict[str, Tensor]:
        """The original matrices: {full name: tensor}, in the model's dtype."""
        return {
            full: self._stack[number].get_parameter(short).detach()
            for number, names in self._names.items()
            for short, full in names.items()
        }

    @torch.no_grad()
    def prefix(
        self, ids_BT: Tensor, attention_mask_BT: Tensor | None = None, positions_BT: Tensor | None = None
    ) -> list[Call]:
        """Run layers 0 .. l-3, and layer l-2 up to its trained matrix, once; record the calls into the span.

        `attention_mask_BT` may be left out if padding is on the right: real tokens do not attend to it. With
        `positions_BT` each row has several sequences, with positions that start at 0.
        """
        recorded_calls: dict[int, Call] = {}

        def recording(number: int) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                rest = {key: value for key, value in kwargs.items() if key != "hidden_states"}
                recorded_calls[number] = Call(_hidden(args, kwargs), args[1:], rest)
                return self._pass_on(*args, **kwargs)

            return run

        in_span = {self._stack[number]: recording(number) for number in self._span}
        with forward_replaced(in_span | dict.fromkeys(self._later, self._pass_on)):
            self._decode(ids_BT, attention_mask_BT, positions_BT)
        first, *others = [recorded_calls[number] for number in self._span]
        number = self._span[0]
        outputs = _outputs_before(self._stack[number], list(self._names[number]), first)
        return [replace(first, recorded=outputs), *others]

    def span(self, calls: list[Call], weights: Mapping[str, Tensor]) -> Tensor:
        """h at layer l, [B, T, D], with `weights` in place of the span's own matrices.

        Only `weights` get gradients. Weights of another dtype (a float32 master copy) are cast.
        """
        h_BTD = calls[0].hidden_BTD
        for number, call in zip(self._span, calls, strict=True):
            layer = self._stack[number]
            swapped = {s: weights[full].to(h_BTD.dtype) for s, full in self._names[number].items()}
            with replayed(call.recorded):
                output = functional_call(layer, swapped, (h_BTD, *call.args), call.kwargs)
            h_BTD = hidden_of(output)
        return h_BTD

    def suffix(
        self,
        h_BTD: Tensor,
        ids_BT: Tensor,
        attention_mask_BT: Tensor | None = None,
        positions_BT: Tensor | None = None,
        *,
        recompute: bool = False,
    ) -> Tensor:
        """The head's input, [B, T, D], from h at layer l, by the later layers and last norm. Needs the whole model.

        The other arguments are those of `prefix`. With `recompute` (activation checkpointing), a later layer keeps only
        its input and runs again in the backward pass; the gradients are the same.
        """

        def given(*_args: Any, **_kwargs: Any) -> Any:
            return self._returned(h_BTD)

        earlier = dict.fromkeys(list(self._stack)[: self.layer], self._pass_on) | {self._stack[self.layer]: given}
        later = {layer: partial(checkpoint, layer.forward, use_reentrant=False) for layer in self._later}
        with forward_replaced(earlier | (later if recompute else {})):
            return self._decode(ids_BT, attention_mask_BT, positions_BT)

    def reach(self, ids_BT: Tensor) -> float | None:
        """How far the matrices of layer l can move its states; None if nothing bounds it (`unlearn.models.reach`)."""
        layer, arguments = self._stack[self.layer], []

        def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            arguments.append((args, kwargs))

        hook = layer.register_forward_pre_hook(keep, with_kwargs=True)
        try:
            with torch.no_grad(), forward_replaced(dict.fromkeys(self._later, self._pass_on)):
                self._decode(ids_BT, None, None)
        finally:
            hook.remove()
        return reach(layer, self._names[self.layer], *arguments[0])

    def logits(self, states_ND: Tensor) -> Tensor:
        """The logits, [N, V], of states that `suffix` returned, after anything that the model does behind its head."""

        def given(*_args: Any, **_kwargs: Any) -> Any:
            return self._output(last_hidden_state=states_ND[None])

        unused = torch.zeros(1, len(states_ND), dtype=torch.long, device=self.device)
        with forward_replaced(dict.fromkeys(self._decoders, given)):
            return self.model(input_ids=unused, use_cache=False).logits[0]

    def _pass_on(self, *args: Any, **kwargs: Any) -> Any:
        """Replaces a layer's forward: returns the input."""
        return self._returned(_hidden(args, kwargs))

    def _returned(self, hidden_BTD: Tensor) -> Any:
        """These states in the form that the model's layers return: alone, or first in a tuple."""
        return hidden_BTD if self._rest is None else (hidden_BTD, *self._rest)

    def _decode(self, ids_BT: Tensor, attention_mask_BT: Tensor | None, positions_BT: Tensor | None) -> Tensor:
        positions = {} if positions_BT is None else {"position_ids": positions_BT}
        output = self._decoders[0](input_ids=ids_BT, attention_mask=attention_mask_BT, use_cache=False, **positions)
        self._output = type(output)
        return output.last_hidden_state

    @torch.no_grad()
    def _check_suffix(self) -> None:
        """Raise UserError if span, suffix and head give other logits than the whole model."""
        ids_BT = torch.arange(2, 10, device=self.device).view(2, 4)
        whole_BTV = self.model(input_ids=ids_BT, use_cache=False).logits
        h_BTD = self.span(self.prefix(ids_BT), self.frozen)
        cut_NV = self.logits(self.suffix(h_BTD, ids_BT).flatten(0, 1))
        tolerance = 1e-5 if cut_NV.element_size() >= 4 else 2e-2  # the head runs on another shape
        if (cut_NV - whole_BTV.flatten(0, 1)).norm() > tolerance * whole_BTV.norm():
            raise UserError(
                f"{type(self.model).__name__} cannot be cut at layer {self.layer}: the cut model gives other logits."
            )

    @torch.no_grad()
    def _check(self) -> tuple[None, ...] | None:
        """Check on a few tokens that the cut and the whole model agree.

        Returns placeholders for the other entries of the tuples that layers return; None if they return no tuples.
        """
        outputs: dict[int, Any] = {}
        hooks = [
            self._stack[number].register_forward_hook(lambda *call, number=number: outputs.update({number: call[-1]}))
            for number in self._span
        ]
        ids_BT = torch.arange(2, 10, device=self.device).view(2, 4)
        try:
            self._decode(ids_BT, None, None)
        finally:
            for hook in hooks:
                hook.remove()
        cannot = f"{type(self.model).__name__} cannot be cut at layer {self.layer}"
        skipped = [number for number in self._span if number not in outputs]
        if skipped:
            raise UserError(f"{cannot}: it does not run layer {skipped[0]} on text.")
        output = outputs[self.layer]
        self._rest = (None,) * (len(output) - 1) if isinstance(output, (tuple, list)) else None
        whole_BTD = hidden_of(output)
        if whole_BTD.shape != (*ids_BT.shape, self.dim):
            raise UserError(f"{cannot}: its states are {tuple(whole_BTD.shape)}, not {(*ids_BT.shape, self.dim)}.")
        if not whole_BTD.isfinite().all():
            raise UserError(
                f"the states of {type(self.model).__name__} at layer {self.layer} are not finite (NaN or infinite): "
                f"its weights are damaged, or {self.dtype} is too small for them."
            )
        calls = self.prefix(ids_BT)
        for cut_BTD in (self.span(calls, self.frozen), self.span(calls, self.frozen)):  # a replay must change nothing
            if not torch.equal(cut_BTD, whole_BTD):
                worst = (cut_BTD - whole_BTD).abs().max().item()
                raise UserError(
                    f"{cannot}: replaying its layers gives other hidden states than the whole model (largest "
                    f"difference {worst:.3g})."
                )
        ids_BT[:, -1] += 2  # earlier tokens must not see this one
        self._check_equal_before_the_last(self.span(self.prefix(ids_BT), self.frozen), whole_BTD)
        return self._rest

    def _check_equal_before_the_last(self, h_BTD: Tensor, other_BTD: Tensor) -> None:
        """Raise UserError if the states of tokens before the last one differ."""
        tolerance = 1e-4 if h_BTD.element_size() >= 4 else 0.2  # by rounding, a token may go to another expert
        if (h_BTD - other_BTD)[:, :-1].norm() > tolerance * h_BTD[:, :-1].norm():
            raise UserError(f"{type(self.model).__name__} is not a decoder: states depend on later tokens.")

    @torch.no_grad()
    def _check_packing(self) -> bool:
        """Whether this model, with its attention kernel, keeps sequences on one line from attending to each other."""
        ids_RL = torch.arange(2, 14, device=self.device).view(2, 6)
        positions_RL = torch.tensor([[0, 1, 2, 3, 0, 1]] * 2, device=self.device)
        try:
            packed_RLD = self.span(self.prefix(ids_RL, positions_BT=positions_RL), self.frozen)
        except (TypeError, ValueError, RuntimeError):  # the model takes no position_ids, or no two-dimensional ones
            return False
        pieces = [self.span(self.prefix(ids_RL[:, part]), self.frozen) for part in (slice(0, 4), slice(4, 6))]
        alone_RLD = torch.cat(pieces, dim=1)
        tolerance = 1e-4 if alone_RLD.element_size() >= 4 else 2e-2
        return bool((packed_RLD - alone_RLD).norm() <= tolerance * alone_RLD.norm())
