"""Models with random weights and batches with random tokens, of given shapes."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, MistralConfig, PreTrainedModel

from unlearn.arguments import SPAN
from unlearn.data.corpora import Topic
from unlearn.methods import NPO, RMU, RNA
from unlearn.methods.method import Method
from unlearn.methods.noise import Ahead
from unlearn.methods.objective import Setup
from unlearn.methods.randomness import generator
from unlearn.models.architectures import decoder_layers, parameter_names
from unlearn.models.cutting import CutModel
from unlearn.training.optimizer import Optimizer
from unlearn.training.variant import Variant, make_variant

LAYER, ALPHA, C, SEED = 7, 1200.0, 6.5, 0
BETA, ALPHA_NPO = 0.1, 50.0
# The noise scales of the paper's grid.
NUS = (0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1, 0.2, 0.3, 0.4, 0.5)
OPTIMIZER: dict[str, Any] = {"lr": 5e-5, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}


def small_mistral(layers: int = 32) -> MistralConfig:
    """Zephyr's depth at an eighth of its width: a CPU trains it."""
    return MistralConfig(
        num_hidden_layers=layers,
        hidden_size=512,
        intermediate_size=1792,
        num_attention_heads=8,
        num_key_value_heads=8,
        vocab_size=32000,
    )


def zephyr(width: float = 1.0) -> MistralConfig:
    """Zephyr-7B's shape, or a narrower one."""
    return MistralConfig(
        num_hidden_layers=32,
        hidden_size=int(4096 * width),
        intermediate_size=int(14336 * width),
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=32000,
    )


def write_checkpoint(config: MistralConfig, folder: Path) -> None:
    """A checkpoint in many shards, as those of large models are."""
    torch.manual_seed(SEED)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder, max_shard_size="32MB")


def equal_lengths(length: int, documents: int, vocabulary: int) -> Topic:
    """One topic whose documents, to forget and to retain, are all of one length."""
    return _topic([length] * documents, [length] * documents, vocabulary)


def wmdp_lengths(longest: int, documents: int, vocabulary: int) -> Topic:
    """One topic with lengths like those of the WMDP corpora and Wikitext-2, in the proportion of `longest` to 512.

    Papers and articles are nearly always cut at the longest length; a line of Wikitext is a heading (every third, 3 to
    8 tokens) or a paragraph (log-normal, around 120 tokens).
    """
    draws = [random.Random(f"{SEED} lengths {i}") for i in range(documents)]
    forget = [longest if d.random() < 0.95 else d.randint(longest // 4, longest) for d in draws]
    paragraphs = [max(8, min(longest, round(d.lognormvariate(4.8, 0.6) * longest / 512))) for d in draws]
    retain = [d.randint(3, 8) if d.random() < 1 / 3 else n for d, n in zip(draws, paragraphs, strict=True)]
    return _topic(forget, retain, vocabulary)


def _topic(forget: list[int], retain: list[int], vocabulary: int) -> Topic:
    def documents(part: str, lengths: list[int]) -> list[list[int]]:
        draws = [random.Random(f"{SEED} {part} {i}") for i in range(len(lengths))]
        return [[d.randrange(3, vocabulary) for _ in range(n)] for d, n in zip(draws, lengths, strict=True)]

    return Topic("bio", documents("forget", forget), documents("retain", retain), {})


def control(dim: int, device: torch.device) -> torch.Tensor:
    """The topic's control vector."""
    return RMU(C).control_vector(dim, generator(SEED, "control", "bio")).to(device)


METHODS: dict[str, tuple[Method, float]] = {"rmu": (RMU(C), ALPHA), "npo": (NPO(BETA), ALPHA_NPO)}


def variants(cut: CutModel, nus: tuple[float, ...], precision: str = "master", method: str = "rmu") -> list[Variant]:
    """A method with RNA, a variant for each nu."""
    made, alpha = METHODS[method]
    setup = Setup(["bio"], cut.dim, cut.device, SEED, alpha, "padding", Ahead(cut.dim, cut.device))
    return [
        make_variant(
            replace(made, rna=RNA(nu)).objective(setup),
            cut.frozen,
            OPTIMIZER["lr"],
            Optimizer(precision=precision),  # else as OPTIMIZER
        )
        for nu in nus
    ]


def random_delta(model: PreTrainedModel, layer: int, seed: int) -> dict[str, Tensor]:
    """The trained matrices of layers l - 2 to l, changed by a hundredth of their size."""
    generator = torch.Generator(model.device).manual_seed(seed)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {}
    for part in decoder_layers(model)[layer - SPAN + 1 : layer + 1]:
        for short in parameter_names(part, None):
            matrix = part.get_parameter(short)
            noise = torch.empty_like(matrix).normal_(generator=generator)
            found[names[id(matrix)]] = matrix + 0.01 * matrix.std() * noise
    return found
