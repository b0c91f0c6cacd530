"""What differs between model families: where the decoder layers are, and what the MLP's down projection is called."""

from __future__ import annotations

import transformers
from torch import nn

from unlearn.errors import UserError

SPAN = 3  # trained layers: l-2, l-1 and l (section 6.2)

# Names of the MLP's down projection inside a decoder layer, by architecture; the first that exists is trained.
DOWN_PROJECTIONS = (
    "mlp.down_proj.weight",  # Llama, Mistral, Qwen, Gemma, OLMo 2, Phi-3
    "mlp.dense_4h_to_h.weight",  # GPT-NeoX
    "mlp.c_proj.weight",  # GPT-2
    "mlp.experts.down_proj",  # Mixtral, Qwen-MoE: one fused tensor for all experts
    "mlp.fc2.weight",  # Phi
    "fc2.weight",  # OPT
)


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
