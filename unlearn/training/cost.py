"""What training costs, from a model's configuration alone: FLOPs, parameters, bytes.

A multiply-add is two FLOPs; norms, activations and the like are left out. F is one decoder layer's forward pass over
one token, d that of its trained matrices. Mixtures of experts count the experts that a token visits in FLOPs, and all
of them in bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import transformers

from unlearn.methods.likelihood_loss import CHUNK
from unlearn.models.architectures import (
    DOWN_PROJECTIONS,
    SPAN,
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
        own = text.per_layer_config[layer]  # in some models, layers differ in their heads
        visited = getattr(text, "num_experts_per_tok", None) or 1
        decoder = decoder_layers(model)[layer]
        # The experts of a layer are one tensor of three dimensions; a depthwise convolution is one whose second is 1.
        stored = dict(decoder.named_parameters())
        matrices = {n: p for n, p in stored.items() if p.ndim >= 2}  # norms and biases are not multiplied
        experts = {n: len(p) if p.ndim == 3 and p.shape[1] > 1 else visited for n, p in matrices.items()}
        active = {n: p.numel() * visited // experts[n] for n, p in matrices.items()}
        trained = parameter_names(decoder, parameters)
        heads = getattr(own, "num_attention_heads", 0)
        head_size = getattr(own, "head_dim", None) or text.hidden_size // max(1, heads)
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

    def forward(self, tokens: int, length: int) -> int:
        """FLOPs of one layer's forward pass over `tokens` tokens in sequences of `length`, attention causal: F."""
        return 2 * self.active * tokens + self._attention(tokens, length)

    def _attention(self, tokens: int, length: int) -> int:
        return 2 * self.attention * tokens * (length + 1)  # scores and values: 2 x 2 x (length + 1) / 2 keys on average

    def training_step(self, parts: Parts, variants: int, *, frozen_forget: bool) -> int:
        """The fewest FLOPs of a step that shares all that can be shared.

        `frozen_forget`: whether the method asks for the frozen model's forget representation (RSV and the per-sample
        norm of Adaptive RMU do, RMU does not).
        """
        return sum(
            self._shared(*part, frozen=name == "retain" or frozen_forget) + variants * self._variant(*part)
            for name, part in parts.items()
        )

    def _shared(self, tokens: int, length: int, *, frozen: bool) -> int:
        f, d = self.forward(tokens, length), 2 * self.trained_active * tokens
        return (self.layer - SPAN + 2) * f - d + (d + (SPAN - 1) * f if frozen else 0)

    def _variant(self, tokens: int, length: int) -> int:
        """Forward; gradients of activations in all layers but the first; gradients of the trained matrices."""
        f, d = self.forward(tokens, length), 2 * self.trained_active * tokens
        backward = (SPAN - 1) * (f + self._attention(tokens, length)) + SPAN * d
        return d + (SPAN - 1) * f + backward

    def likelihood_step(
        self,
        parts: Parts,
        variants: int,
        *,
        reference: Sequence[str],
        noises: int = 1,
        retain_reference: bool = True,
        recompute: bool = False,
    ) -> int:
        """The fewest FLOPs of a step of a method on likelihoods that shares all that can be shared.

        Args:
            reference: the parts whose likelihood the method takes under the frozen model, noise apart.
            noises: how many different noises (nu, seed) the variants have; the reference's suffix runs once for each.
            retain_reference: whether the retain loss compares with the frozen model ("kl", "mse"). Its head runs once a
                variant, so that its distributions need not be kept.
            recompute: whether layers above l run again in the backward pass.
        """
        later, total = self.layers - self.layer - 1, 0
        for name, (tokens, length) in parts.items():
            compared = name == "retain" and retain_reference
            asked = name in reference
            predicted = tokens if compared else tokens - tokens // length  # nothing predicts a text's first token
            f, head = self.forward(tokens, length), 2 * self.head * predicted
            total += self._shared(tokens, length, frozen=compared or asked)
            total += (noises if compared else 0) * later * f + (later * f + head if asked else 0)
            own = self._variant(tokens, length)
            own += later * (2 * f + self._attention(tokens, length)) + 2 * head + (head if compared else 0)
            # What runs again ends before a layer's last matrix, whose result the backward pass does not need.
            again = later * (f - 2 * self.trained_active * tokens) if recompute else 0
            total += variants * (own + again)
        return total

    def published_likelihood_step(self, parts: Parts, *, reference: Sequence[str]) -> int:
        """FLOPs of a step of the published code: two whole models, gradients of every parameter."""
        flops = 0
        for name, (tokens, length) in parts.items():
            whole = self.layers * self.forward(tokens, length) + 2 * self.head * tokens
            flops += whole * (3 + (name in reference)) + self.layers * self._attention(tokens, length)
        return flops

    def published_step(self, parts: Parts, *, frozen_forget: bool) -> int:
        """FLOPs of a step of the published code.

        Whole models with their heads, and gradients of every parameter up to layer l. Its Adaptive RMU and RMU need
        three forward passes, RSV four.
        """
        flops = 0
        for name, (tokens, length) in parts.items():
            f = self.forward(tokens, length)
            passes = 2 if name == "retain" or frozen_forget else 1
            flops += passes * (self.layers * f + 2 * self.head * tokens) + (self.layer + 1) * 2 * f
        return flops


Parts = dict[str, tuple[int, int]]  # "forget" and "retain" -> tokens of the batch, their sequences' length


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
