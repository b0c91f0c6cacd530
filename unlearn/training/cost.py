"""What training costs, from a model's configuration alone: parameters and bytes. `bench/flops.py` counts FLOPs."""

from __future__ import annotations

from dataclasses import dataclass

import transformers

from unlearn.arguments import SPAN
from unlearn.methods.likelihood_loss import CHUNK
from unlearn.models.architectures import (
    DOWN_PROJECTIONS,
    decoder_layers,
    head_of,
    parameter_names,
    without_weights,
)


@dataclass(frozen=True)
class Shape:
    """A model's size as far as costs depend on it; counts of parameters unless said otherwise."""

    layers: int
    layer: int  # l
    layer_parameters: int  # stored, in one layer
    active: int  # multiplied with each token, in one layer
    trained: int  # stored, in one layer's trained matrices
    trained_active: int
    embeddings: int
    head: int
    tied: bool  # whether the head is the embeddings
    hidden: int
    heads: int
    attention: int  # heads times their size
    kernel: str  # of attention, as transformers chooses it
    intermediate: int  # width of what a token's MLP (or its experts together) computes

    @staticmethod
    def of(config: transformers.PretrainedConfig, layer: int, parameters: list[str] | None = None) -> Shape:
        """The shape of a model, whose weights are never made."""
        model = without_weights(config)
        text = config.get_text_config()
        layer_config = text.per_layer_config[layer]  # in some models, layers differ in their heads
        visited = getattr(text, "num_experts_per_tok", None) or 1
        decoder = decoder_layers(model)[layer]
        # The experts of a layer are one tensor of three dimensions; a depthwise convolution is one whose second is 1.
        stored = dict(decoder.named_parameters())
        matrices = {n: p for n, p in stored.items() if p.ndim >= 2}  # norms and biases are not multiplied
        experts = {n: len(p) if p.ndim == 3 and p.shape[1] > 1 else visited for n, p in matrices.items()}
        active = {n: p.numel() * visited // experts[n] for n, p in matrices.items()}
        trained = parameter_names(decoder, parameters)
        heads = getattr(layer_config, "num_attention_heads", 0)
        head_size = getattr(layer_config, "head_dim", None) or text.hidden_size // max(1, heads)
        trained_active = sum(active.get(n, 0) for n in trained)
        down = next((active[n] for n in DOWN_PROJECTIONS if n in active), trained_active)
        head, embeddings = head_of(model), model.get_input_embeddings()
        assert head is not None
        return Shape(
            layers=text.num_hidden_layers,
            layer=layer,
            layer_parameters=sum(p.numel() for p in stored.values()),
            active=sum(active.values()),
            trained=sum(stored[n].numel() for n in trained),
            trained_active=trained_active,
            embeddings=embeddings.weight.numel(),
            head=head.weight.numel(),
            tied=head.weight is embeddings.weight,
            hidden=text.hidden_size,
            heads=heads,
            attention=heads * head_size,
            kernel=model.config.get_text_config()._attn_implementation,
            intermediate=down // text.hidden_size,
        )


@dataclass(frozen=True)
class Memory:
    """Bytes that training needs."""

    weights: int  # embeddings and layers 0 .. l
    working: int  # one variant's activations, gradients and cast matrices; freed when its turn is over
    variant: int  # matrices and optimizer state of each grid point

    def total(self, variants: int) -> int:
        """For this many variants in one process."""
        return self.weights + self.working + variants * self.variant

    def variants(self, available: int) -> int:
        """How many fit into so many bytes; may be 0."""
        return max(0, (available - self.weights - self.working) // self.variant)


def likelihood_memory(
    shape: Shape, tokens: int, *, weight_bytes: int, precision: str, recompute: bool, pairs: int = 0
) -> Memory:
    """The same of a method on likelihoods, which needs the whole model.

    `tokens` and `pairs` are those of all parts of a step. With `recompute`, layers above l keep their inputs only.
    """
    spanned = training_memory(shape, tokens, weight_bytes=weight_bytes, precision=precision, pairs=pairs)
    later = shape.layers - shape.layer - 1
    kept = _kept(shape, tokens, pairs, weight_bytes)
    layers = later * tokens * shape.hidden * weight_bytes + kept if recompute else later * kept
    # Of the head: inputs and gradients of all positions; logits, log-probabilities and gradients of some.
    head = tokens * 4 * shape.hidden * weight_bytes + 5 * 4 * CHUNK * shape.head // shape.hidden
    stored = shape.embeddings + shape.layers * shape.layer_parameters + (0 if shape.tied else shape.head)
    return Memory(
        weights=weight_bytes * stored,
        working=spanned.working + layers + head,
        variant=spanned.variant + tokens * shape.hidden * weight_bytes,  # and the reference's states for its noise
    )


def training_memory(shape: Shape, tokens: int, *, weight_bytes: int, precision: str, pairs: int = 0) -> Memory:
    """Estimate of what training needs.

    Args:
        tokens: forget and retain tokens of one step, padding included.
        weight_bytes: of one number of the model, 2 for bfloat16.
        precision: "master" or "model", as in `make_variant`.
        pairs: of tokens of the same row, counted over all rows, where attention is eager; other kernels keep none.
    """
    state = 4 if precision == "master" else weight_bytes
    trained = SPAN * shape.trained
    # The part shared in front of the trained matrix keeps 4 vectors of the hidden size and 3 of the MLP's; loss and
    # target 6 in float32.
    shared = 2 * 4 * shape.hidden + 4 * shape.intermediate
    activations = (SPAN - 1) * _kept(shape, tokens, pairs, weight_bytes)
    activations += tokens * (shared * weight_bytes + 6 * 4 * shape.hidden)
    cast = trained * weight_bytes if precision == "master" and weight_bytes < 4 else 0
    return Memory(
        weights=weight_bytes * (shape.embeddings + (shape.layer + 1) * shape.layer_parameters),
        working=activations + trained * state + 2 * cast,
        variant=3 * trained * state,  # the matrices and AdamW's two moments
    )


def _kept(shape: Shape, tokens: int, pairs: int, weight_bytes: int) -> int:
    """Bytes that a layer keeps for a backward pass.

    About 12 vectors of the hidden size a token (float32 norms count twice) and 4 of the MLP's; of each head and pair of
    tokens the attention in float32 and, where the model has another dtype, its cast.
    """
    vectors = 12 * shape.hidden + 4 * shape.attention + 4 * shape.intermediate
    of_pair = 4 + (weight_bytes if weight_bytes < 4 else 0)
    return tokens * vectors * weight_bytes + shape.heads * pairs * of_pair
