"""The differences between model families: where the decoder layers are, and the name of the MLP's down projection."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    PretrainedConfig,
    PreTrainedModel,
)

from unlearn.errors import UserError

KEPT = "kept"  # attribute of a cut model: the names of its shortened list of layers and of its decoder

# Names of the MLP's down projection inside a decoder layer, by architecture; the first that exists is trained. Experts
# are one fused tensor. docs/models.md lists all families.
DOWN_PROJECTIONS = (
    "mlp.down_proj.weight",  # Llama, Mistral, Qwen, Gemma, OLMo 2, Phi-3
    "mlp.dense_4h_to_h.weight",  # GPT-NeoX
    "mlp.c_proj.weight",  # GPT-2
    "mlp.experts.down_proj",  # Mixtral, Qwen-MoE
    "mlp.fc2.weight",  # Phi
    "fc2.weight",  # OPT
    "mlp.fc_out.weight",  # GPT-J
    "mlp.output_linear.weight",  # JetMoE
    "mlp.text_moe.experts.down_proj",  # Ernie 4.5 VL
    "mlp.Wo.weight",  # ModernBERT decoder
    "mlp_block.down_proj.weight",  # RecurrentGemma
    "ffn.down_proj.weight",  # MPT
    "ffn.fc2.weight",  # Kosmos-2
    "ffn.2.weight",  # CTRL
    "feed_forward.down_proj.weight",  # Jamba, Llama 4
    "feed_forward.experts.down_proj",
    "feed_forward.w2.weight",  # LFM2
    "feed_forward.value.weight",  # RWKV
    "block_sparse_moe.experts.down_proj",  # GraniteMoE
    "shared_mlp.output_linear.weight",  # GraniteMoE hybrid without experts
    "output.dense.weight",  # GIT, BLIP
)


def is_multimodal(config: PretrainedConfig) -> bool:
    """Whether the language model is only a part of the configured model."""
    return config.get_text_config() is not config


def auto_class(config: PretrainedConfig) -> type[Any]:
    """The class of transformers for a whole checkpoint, with the towers of a multimodal model."""
    has_multimodal_class = type(config) in AutoModelForMultimodalLM._model_mapping
    if has_multimodal_class and (is_multimodal(config) or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING):
        return AutoModelForMultimodalLM
    return AutoModelForCausalLM


def layer_count(config: PretrainedConfig) -> int:
    """The number of decoder layers. Raises UserError if the configuration does not describe a decoder."""
    try:
        text = config.get_text_config()
        count = text.num_hidden_layers
    except (AttributeError, ValueError):
        raise UserError(f"{type(config).__name__} does not describe one stack of decoder layers.") from None
    if config.is_encoder_decoder or text.is_encoder_decoder:
        raise UserError(f"{type(config).__name__} describes an encoder and a decoder, not a decoder alone.")
    return count


def without_weights(config: PretrainedConfig, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """The whole model on the meta device, without memory for its weights."""
    with torch.device("meta"):
        return auto_class(config).from_config(config, trust_remote_code=trust_remote_code)


def context_length(config: PretrainedConfig) -> int | None:
    """The most tokens that the model can read, by its configuration; None if that says nothing."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def has_learned_positions(config: PretrainedConfig) -> bool:
    """Whether the model has an embedding for each position, and so cannot read beyond its context."""
    model = without_weights(config)
    tables = (m for m in model.modules() if isinstance(m, nn.Embedding) and m is not model.get_input_embeddings())
    context = context_length(config)
    # OPT has two more embeddings than positions.
    return context is not None and any(context <= table.num_embeddings <= context + 8 for table in tables)


def parameter_count(config: PretrainedConfig) -> int:
    """The number of parameters of the whole model, without memory for its weights."""
    return sum(parameter.numel() for parameter in without_weights(config).parameters())


def input_device(model: PreTrainedModel) -> torch.device:
    """The device of the embeddings, where inputs must be. Other parts may be on other devices or offloaded."""
    return model.get_input_embeddings().weight.device


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The list of decoder layers: the first ModuleList with as many entries as the language model has layers."""
    if hasattr(model, KEPT):
        return model.get_submodule(getattr(model, KEPT)[0])
    count = layer_count(model.config)
    language_model = model.get_decoder() if is_multimodal(model.config) else model.base_model
    stacks = [m for m in language_model.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not stacks:
        raise UserError(f"{type(model).__name__} has no list of {count} decoder layers: it cannot be cut.")
    return stacks[0]


def decoders(model: PreTrainedModel) -> list[PreTrainedModel]:
    """The parts that turn token ids into the states that the head takes, the largest first."""
    if hasattr(model, KEPT):
        return [model.get_submodule(getattr(model, KEPT)[1])]
    stack, head = decoder_layers(model), head_of(model)
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    without_head = [part for part in parts if stack in (inside := set(part.modules())) and head not in inside]
    if not without_head:
        raise UserError(f"{type(model).__name__} has no part without its head: it cannot be cut.")
    return without_head


def head_of(model: PreTrainedModel) -> nn.Linear | None:
    """The head, which may belong to an inner model; None if there is none."""
    parts = (part for part in model.modules() if isinstance(part, PreTrainedModel))
    return next((head for part in parts if (head := part.get_output_embeddings()) is not None), None)


def hidden_of(output: Any) -> torch.Tensor:
    """The hidden states that a decoder layer returns: alone, or first in a tuple."""
    return output[0] if isinstance(output, (tuple, list)) else output


def keep_up_to(model: PreTrainedModel, layer: int) -> None:
    """Remove from a model, in place, what the states at `layer` do not need: later layers, the head, the towers."""
    stack, decoder = decoder_layers(model), decoders(model)[0]
    names = {module: name for name, module in model.named_modules()}
    # The configuration keeps the number of layers, as layers may compute with it.
    setattr(model, KEPT, (names[stack], names[decoder]))
    del stack[layer + 1 :]
    head = head_of(model)
    for part in [m for m in model.modules() if stack in m.modules()]:
        for name, child in part.named_children():
            if child is head or (isinstance(child, PreTrainedModel) and stack not in child.modules()):
                setattr(part, name, None)
                part._is_hf_initialized = True  # some models initialise their parts by name
    left = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    tied = model.all_tied_weights_keys.items()
    model.all_tied_weights_keys = {target: source for target, source in tied if {target, source} <= left}


def parameter_names(layer: nn.Module, wanted: list[str] | None) -> list[str]:
    """The names, inside a decoder layer, of the parameters to train: the wanted ones that the layer has.

    Raises UserError, which lists the layer's parameters, if it has none of them.
    """
    existing = [name for name, _ in layer.named_parameters()]
    trained = [name for name in (DOWN_PROJECTIONS if wanted is None else wanted) if name in existing]
    if not trained:
        problem = f"no parameter {wanted[0]!r}" if wanted else "no MLP down projection with a known name"
        raise UserError(
            f"model.parameters: a decoder layer of this model has {problem}. Its parameters: {', '.join(existing)}."
        )
    return trained[:1] if wanted is None else trained
