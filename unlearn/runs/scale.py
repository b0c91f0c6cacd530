"""A model's scale: the size of its states and of the inputs of its trained matrices, and coefficients computed from it.

`unlearn scale MODEL` prints a file for conf/model. Its values are the start of a search, not its result. H norm of a
state, D hidden size, T tokens.

- c and beta: the paper's, in units of the states' norm at layer l (Zephyr-7B has 3.2 at its layer 7).
- nu: the paper's, in units of a coordinate's spread over tokens (0.05 there).
- lr: AdamW moves an entry of a matrix by about lr a step, so a coordinate of h moves by at most lr ||a||_1 a step,
  a being the input of the trained matrix. lr is such that the coordinates can reach their target several times.
- alpha: both losses are squared distances, so it does not depend on a model's scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from math import isfinite, sqrt

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


@dataclass(frozen=True)
class LayerScale:
    """The scale of a layer over the tokens of the retain corpora."""

    layer: int
    norm: float  # mean norm of the layer's output
    median: float  # median norm: far below the mean where a few tokens have huge states
    spread: float  # median over coordinates of the standard deviation over tokens
    input_norm: float  # mean L1 norm of the input of the trained matrix (of fused experts: of their module)


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
    for layer, of_layer in zip(layers, sums, strict=True):
        hooks.append(layer.register_forward_hook(of_layer.add_output))
        for module in owners(layer, parameter_names(layer, parameters)):
            hooks.append(module.register_forward_pre_hook(of_layer.add_input))
    try:
        for ids_1T in ids:
            model(input_ids=ids_1T, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return [of_layer.scale(number) for number, of_layer in enumerate(sums)]


class _Sums:
    """A layer's sums over tokens, collected by forward hooks: the states themselves would not fit into memory."""

    def __init__(self) -> None:
        self._norms: list[Tensor] = []  # [T] of each document
        self._inputs: list[Tensor] = []
        self._sum_D: Tensor | float = 0.0
        self._squares_D: Tensor | float = 0.0

    def add_output(self, _module: nn.Module, _args: object, output: object) -> None:
        """Add the states that the layer returns."""
        hidden = hidden_of(output)
        assert isinstance(hidden, Tensor)
        hidden_TD = hidden.flatten(0, -2).double()
        self._norms.append(hidden_TD.norm(dim=-1).cpu())
        self._sum_D += hidden_TD.sum(dim=0).cpu()
        self._squares_D += hidden_TD.square().sum(dim=0).cpu()

    def add_input(self, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Add the input of the trained matrix."""
        self._inputs.append(args[0].flatten(0, -2).double().abs().sum(dim=-1).cpu())

    def scale(self, layer: int) -> LayerScale:
        """The layer's scale, from the sums."""
        norms_T, inputs_T = torch.cat(self._norms), torch.cat(self._inputs)
        assert isinstance(self._sum_D, Tensor)
        assert isinstance(self._squares_D, Tensor)
        count = len(norms_T)
        spreads_D = ((self._squares_D - self._sum_D.square() / count) / max(1, count - 1)).clamp(min=0).sqrt()
        figures = (norms_T.mean(), norms_T.median(), spreads_D.median(), inputs_T.mean())
        return LayerScale(layer, *(figure.item() for figure in figures))


def coefficients(scales: Sequence[LayerScale], layer: int, dim: int, config: Config) -> dict[str, object]:
    """Values for conf/model at a layer, scaled from the paper's as the docstring of this module explains.

    `config.train` gives the number of steps and the schedule. lr falls with the number of steps.
    """
    scale = scales[layer]
    larger, noisier = scale.norm / PAPER_NORM, scale.spread / PAPER_SPREAD
    farthest = max(PAPER_BETA * scale.norm, *(c * larger for c in PAPER_C.values())) / sqrt(dim)
    inputs = sum(trained.input_norm for trained in scales[layer - SPAN + 1 : layer + 1])
    decay = 0.5 if config.train.schedule == "linear" else 1.0
    nu = {method: _rounded(value * noisier) for method, value in PAPER_NU.items()}
    return {
        "layer": layer,
        "alpha": ALPHA[config.train.schedule],
        "lr": _rounded(REACH * farthest / (inputs * config.train.steps * decay)),
        "methods": {
            "rmu": {"c": _rounded(PAPER_C["rmu"] * larger), "nu": nu["rmu"]},
            "adaptive_rmu": {"beta": PAPER_BETA, "nu": nu["adaptive_rmu"]},
            "rsv": {"c": _rounded(PAPER_C["rsv"] * larger), "nu": nu["rsv"]},
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
    chosen = max(SPAN - 1, round(PAPER_LAYER * layers)) if layer is None else layer
    if not SPAN - 1 <= chosen < layers:
        raise UserError(f"--layer {chosen} is not allowed: it must be in {SPAN - 1}..{layers - 1}.")
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
    title = f"{config.model.name}: {len(texts)} retain documents of at most {length} tokens"
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    for column in ("layer", "norm", "median norm", "spread", "L1 norm of the matrix's input"):
        table.add_column(column, justify="right")
    for scale in scales:
        row = (scale.norm, scale.median, scale.spread, scale.input_norm)
        table.add_row(
            str(scale.layer), *(f"{value:.3g}" for value in row), style="bold" if scale.layer == chosen else ""
        )
    console.print(table)
    t = config.train
    values = coefficients(scales, chosen, model.config.get_text_config().hidden_size, config)
    print(f"# Starting values at layer {chosen} for {t.steps} steps at a {t.schedule} rate (unlearn scale), not tuned.")
    print(yaml.safe_dump(_model_keys(config, len(scales)) | values, sort_keys=False, default_flow_style=None).rstrip())


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
