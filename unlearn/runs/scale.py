"""A model's scale: the size of its states and of the inputs of its trained matrices, and coefficients computed from it.

`unlearn scale MODEL` prints a file for conf/model. Its values are the start of a search, not its result. H norm of a
state, D hidden size, T tokens.

- c and beta: the paper's, in units of the states' norm at layer l (Zephyr-7B has 3.2 at its layer 7).
- nu: the paper's, in units of a coordinate's spread over tokens (0.05 there).
- lr: AdamW moves an entry of a matrix by about lr a step, so a coordinate of h moves by at most lr ||a||_1 a step,
  a being the input of the trained matrix. lr is such that the coordinates can reach their target several times.
- alpha: both losses are squared distances, so it does not depend on a model's scale.

Where a norm follows the trained matrix (`unlearn.models.reach`), it bounds how far a state can be moved, however long
the training:

- layer: of the first layers, that whose matrix reaches farthest, in norms of its states.
- c and beta: at most twice what can be reached. A farther target adds only what cannot be reached to the loss.
- lr: the norm sees directions only, so the matrix's output has to change by its own size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import inf, isfinite, sqrt
from typing import Any

import torch
import yaml
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor, nn

from unlearn.arguments import SPAN
from unlearn.config.schema import Config
from unlearn.data.corpora import Reading, check_rows, documents, first_tokens
from unlearn.errors import UserError
from unlearn.models.architectures import decoder_layers, hidden_of, parameter_names
from unlearn.models.loading import Source, load_config, load_tokenizer, load_whole
from unlearn.models.reach import reach
from unlearn.models.replay import owners
from unlearn.screen import console

# The paper's setting (section 6.2), Zephyr-7B at layer 7 of 32.
PAPER_LAYER, PAPER_NORM, PAPER_SPREAD = 7 / 32, 3.2, 0.05
NUS = (0.0, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32)  # values of nu in the printed grids
PAPER_C = {"rmu": 6.5, "rsv": 10.0}
PAPER_BETA = 3.0
PAPER_NU = {"rmu": 0.03, "adaptive_rmu": 0.08, "rsv": 0.09}
# The distance that a coordinate could move in a run, in distances to its target (docs/log/real_model.md).
REACH = 10.0
ALPHA = {"constant": 1200.0, "linear": 300.0}
FARTHEST = 2.0  # a target, in distances that can be reached
FIRST = 0.3  # the share of the layers among which the one with the farthest reach is chosen


@dataclass(frozen=True)
class LayerScale:
    """The scale of a layer over the tokens of the retain corpora."""

    layer: int
    norm: float  # mean norm of the layer's output
    median: float  # median norm: far below the mean where a few tokens have huge states
    spread: float  # median over coordinates of the standard deviation over tokens
    input_norm: float  # mean L1 norm of the input of the trained matrix (of fused experts: of their module)
    output: float  # root mean square of a coordinate of its output
    reach: float | None = None  # the distance by which the matrix can move a state; None: nothing bounds it


@torch.no_grad()
def measure(model: nn.Module, ids: Sequence[Tensor], parameters: list[str] | None) -> list[LayerScale]:
    """The scale of every layer.

    Args:
        ids: token ids of each document, int64 [1, T].
        parameters: names of the trained matrices inside a layer; None: the MLP's down projection.
    """
    layers = decoder_layers(model)
    sums = [_Sums() for _ in layers]
    hooks = []
    names = [parameter_names(layer, parameters) for layer in layers]
    for layer, of_layer, trained in zip(layers, sums, names, strict=True):
        hooks.append(layer.register_forward_hook(of_layer.add_output, with_kwargs=True))
        for module in owners(layer, trained):
            hooks.append(module.register_forward_hook(of_layer.add_matrix))
    try:
        for ids_1T in ids:
            model(input_ids=ids_1T, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return [
        replace(of_layer.scale(number), reach=reach(layer, trained, *of_layer.call))
        for number, (layer, of_layer, trained) in enumerate(zip(layers, sums, names, strict=True))
    ]


class _Sums:
    """A layer's sums over tokens, collected by forward hooks: the states themselves would not fit into memory."""

    def __init__(self) -> None:
        self.call: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})  # the arguments of the layer's last call
        self._norms: list[Tensor] = []  # [T] of each document
        self._inputs: list[Tensor] = []
        self._outputs: list[Tensor] = []
        self._sum_D: Tensor | float = 0.0
        self._squares_D: Tensor | float = 0.0

    def add_output(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
        """Add the states that the layer returns."""
        hidden = hidden_of(output)
        assert isinstance(hidden, Tensor)
        hidden_TD = hidden.flatten(0, -2).double()
        self.call = (args, kwargs)
        self._norms.append(hidden_TD.norm(dim=-1).cpu())
        self._sum_D += hidden_TD.sum(dim=0).cpu()
        self._squares_D += hidden_TD.square().sum(dim=0).cpu()

    def add_matrix(self, _module: nn.Module, args: tuple[Tensor, ...], output: object) -> None:
        """Add the input and the output of the trained matrix."""
        self._inputs.append(args[0].flatten(0, -2).double().abs().sum(dim=-1).cpu())
        self._outputs.append(hidden_of(output).flatten(0, -2).double().square().mean(dim=-1).cpu())

    def scale(self, layer: int) -> LayerScale:
        """The layer's scale, from the sums."""
        norms_T, inputs_T, squares_T = torch.cat(self._norms), torch.cat(self._inputs), torch.cat(self._outputs)
        assert isinstance(self._sum_D, Tensor)
        assert isinstance(self._squares_D, Tensor)
        count = len(norms_T)
        spreads_D = ((self._squares_D - self._sum_D.square() / count) / max(1, count - 1)).clamp(min=0).sqrt()
        figures = (norms_T.mean(), norms_T.median(), spreads_D.median(), inputs_T.mean(), squares_T.median().sqrt())
        return LayerScale(layer, *(figure.item() for figure in figures))


def default_layer(scales: Sequence[LayerScale]) -> int:
    """The paper's depth; where a norm bounds what the matrices can do, the layer of the farthest reach."""
    paper = max(SPAN - 1, round(PAPER_LAYER * len(scales)))
    ratios = {s.layer: s.reach / s.median for s in scales[SPAN - 1 :] if s.reach is not None}
    first = {layer: ratio for layer, ratio in ratios.items() if layer <= max(paper, FIRST * len(scales))}
    return max(first, key=lambda layer: first[layer]) if paper in first else paper


def coefficients(scales: Sequence[LayerScale], layer: int, dim: int, config: Config) -> dict[str, object]:
    """Values for conf/model at a layer, scaled from the paper's as the docstring of this module explains.

    `config.train` gives the number of steps and the schedule. lr falls with the number of steps.
    """
    scale, trained = scales[layer], scales[layer - SPAN + 1 : layer + 1]
    noisier = scale.spread / PAPER_SPREAD
    longest = inf if scale.reach is None else FARTHEST * scale.reach
    norm = scale.norm if scale.reach is None else scale.median
    targets = {name: min(c * norm / PAPER_NORM, longest) for name, c in PAPER_C.items()}
    beta = min(PAPER_BETA, longest / norm)
    farthest = max(beta * norm, *targets.values()) / sqrt(dim)
    if scale.reach is not None:
        farthest = sum(of_layer.output for of_layer in trained)
    inputs = sum(of_layer.input_norm for of_layer in trained)
    decay = 0.5 if config.train.schedule == "linear" else 1.0
    nu = {method: _rounded(value * noisier) for method, value in PAPER_NU.items()}
    return {
        "layer": layer,
        "alpha": ALPHA[config.train.schedule],
        "lr": _rounded(REACH * farthest / (inputs * config.train.steps * decay)),
        "methods": {
            "rmu": {"c": _rounded(targets["rmu"]), "nu": nu["rmu"]},
            "adaptive_rmu": {"beta": _rounded(beta), "nu": nu["adaptive_rmu"]},
            "rsv": {"c": _rounded(targets["rsv"]), "nu": nu["rsv"]},
        },
        "grids": {
            name: ",".join(f"{_rounded(noisier * nu):g}" for nu in grid)
            for name, grid in (("nu", NUS[1:]), ("nu_attacks", NUS[::2]), ("nu_likelihood", NUS[:4]))
        },
    }


def _rounded(value: float) -> float:
    return float(f"{value:.2g}")


def show_scale(config: Config, layer: int | None, count: int) -> None:
    """Measure a configuration's model on its retain corpora; print a table, and a file for conf/model on stdout.

    Raises UserError if the model cannot be trained at this layer.
    """
    source = Source.of(config.model)
    layers = load_config(source).get_text_config().num_hidden_layers
    if layer is not None and not SPAN - 1 <= layer < layers:
        raise UserError(f"--layer {layer} is not allowed: it must be in {SPAN - 1}..{layers - 1}.")
    model, tokenizer = load_whole(source), load_tokenizer(source)
    reading = Reading.of(config.data, tokenizer)
    texts = [
        text
        for name, topic in config.data.topics.items()
        for text, _ in islice(documents(topic.retain, f"data.topics.{name}.retain", reading), count)
    ]
    length = min(topic.max_length for topic in config.data.topics.values())
    encoded = [first_tokens(text, tokenizer, length, special=not reading.chat) for text in texts]
    check_rows({"data.topics, retain": encoded}, len(model.get_input_embeddings().weight), first_counted=True)
    scales = measure(
        model, [torch.tensor([ids], device=source.torch_device) for ids in encoded], config.model.parameters
    )
    for scale in scales:
        if not all(map(isfinite, (scale.norm, scale.spread, scale.input_norm))):
            raise UserError(
                f"the states of {config.model.path} at layer {scale.layer} are not finite (NaN or infinite): its "
                f"weights are damaged, or {model.dtype} is too small for them."
            )
    chosen = default_layer(scales) if layer is None else layer
    console.print(
        _table(scales, chosen, f"{config.model.name}: {len(texts)} retain documents of at most {length} tokens")
    )
    t = config.train
    values = coefficients(scales, chosen, model.config.get_text_config().hidden_size, config)
    print(f"# Starting values at layer {chosen} for {t.steps} steps at a {t.schedule} rate (unlearn scale), not tuned.")
    print(yaml.safe_dump(_model_keys(config, len(scales)) | values, sort_keys=False, default_flow_style=None).rstrip())


def _table(scales: Sequence[LayerScale], chosen: int, title: str) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    for column in ("layer", "norm", "median norm", "spread", "L1 norm of the matrix's input", "reach"):
        table.add_column(column, justify="right")
    for s in scales:
        figures = [f"{value:.3g}" for value in (s.norm, s.median, s.spread, s.input_norm)]
        reached = "unbounded" if s.reach is None else f"{s.reach:.3g}"
        table.add_row(str(s.layer), *figures, reached, style="bold" if s.layer == chosen else "")
    return table


def _model_keys(config: Config, layers: int) -> dict[str, object]:
    """The part of a file of conf/model that says which model it is and how to load it."""
    m = config.model
    path = m.path.rstrip("/")
    return {
        "name": m.name if m.num_layers == layers else path.rpartition("/")[2],
        "path": path,
        "revision": m.revision,
        "gguf_file": m.gguf_file,
        "trust_remote_code": m.trust_remote_code,
        "attn_implementation": "${preset.attn_implementation}",
        "num_layers": layers,
        "dtype": "${preset.dtype}",
        "device": "auto",
        "max_memory": None,
        "parameters": m.parameters,
    }
