"""Evaluation at the paper's shape: ours against lm-eval's `hf`, and MaxLogit's greedy tokens."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import MistralConfig, PreTrainedModel

import unlearn
from bench import shapes
from bench.gpu.device import build, gemm_rate, peak_gb, release, seconds_of
from bench.gpu.results import Results
from unlearn.models.group import ModelGroup
from unlearn.models.loading import Source, load_tokenizer
from unlearn.training.cost import Shape

TOKENIZER = str(Path(unlearn.__file__).parent / "toy" / "model")  # not used, but lm-eval's class wants one
ANSWERS = (5, 6, 7, 8)
GREEDY = 15  # tokens of MaxLogit
HF_BATCHES = (16, 64)
Request = tuple[tuple[str, str], list[int], list[int]]  # as lm-eval's `_loglikelihood_tokens` takes them


def measure(
    results: Results, config: MistralConfig, device: torch.device, questions: int, tokens_per_batch: int
) -> None:
    """Section c."""
    if find_spec("lm_eval") is None:
        results.add("c", "evaluation", skipped="not measured: lm_eval is not installed")
        return
    rate = gemm_rate(config, device, 2048)
    shape = Shape.of(config, shapes.LAYER)
    model = build(config, device)
    prompts, perturbed = _prompts(questions, config.vocab_size)
    requests = _requests([*prompts, *perturbed])
    tokens, scored = _distinct_tokens([*prompts, *perturbed]), 2 * questions
    flops = _forward_flops(shape, tokens, scored)
    results.add("c", "work", questions=questions, tokens=sum(map(len, [*prompts, *perturbed])), distinct_tokens=tokens)

    def ours() -> dict[str, Any]:
        from unlearn.evaluate.scorer import Scorer

        scorer = Scorer(ModelGroup(model), load_tokenizer(Source(TOKENIZER)), tokens_per_batch)
        scorer._loglikelihood_tokens(_requests(prompts[:16]))  # warm
        seconds = seconds_of(lambda: scorer._loglikelihood_tokens(requests), device)
        shared = {"shares_prefixes": scorer.shares_prefixes, "tree_error": scorer.tree_error}
        return _figures(seconds, flops, rate, device) | shared

    def theirs(size: int) -> dict[str, Any]:
        from lm_eval.models.huggingface import HFLM

        adapter = HFLM(pretrained=model, tokenizer=load_tokenizer(Source(TOKENIZER)), batch_size=size, backend="causal")
        run = partial(adapter._loglikelihood_tokens, disable_tqdm=True)
        run(_requests(prompts[:16]))
        seconds = seconds_of(lambda: [run(_requests(part)) for part in (prompts, perturbed)], device)
        return _figures(seconds, flops, rate, device)

    def max_logits() -> dict[str, Any]:
        return _max_logits(model, prompts, shape, rate, device, tokens_per_batch)

    for cudnn in (False, True) if device.type == "cuda" else (True,):
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
        note = "" if cudnn else ", cuDNN's attention off"
        for _ in range(2):  # the first time, kernels are compiled for the shapes
            release(device)
            results.attempt("c", f"ours, {tokens_per_batch} tokens a batch{note}", ours)
        for size in HF_BATCHES:
            release(device)
            results.attempt("c", f"lm-eval's hf, batch size {size}{note}", partial(theirs, size))
        release(device)
        results.attempt("c", f"MaxLogit, {GREEDY} tokens{note}", max_logits)


def _prompts(count: int, vocabulary: int) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts of MMLU's lengths (50 to 400 tokens, half of them below 110), and each with one option replaced."""
    draw = random.Random(shapes.SEED)
    lengths = [max(50, min(400, round(draw.lognormvariate(4.7, 0.55)))) for _ in range(count)]
    prompts = [[draw.randrange(3, vocabulary) for _ in range(n)] for n in lengths]
    perturbed = []
    for prompt in prompts:
        start = len(prompt) - draw.randrange(15, 45)
        perturbed.append([*prompt[:start], *(draw.randrange(3, vocabulary) for _ in range(4)), *prompt[start + 5 :]])
    return prompts, perturbed


def _requests(prompts: Sequence[list[int]]) -> list[Request]:
    return [((str(prompt[:8]), str(token)), prompt, [token]) for prompt in prompts for token in ANSWERS]


def _distinct_tokens(prompts: Sequence[list[int]]) -> int:
    """Tokens that have to be computed: beginnings that prompts share count once."""
    ordered = sorted(prompts)
    shared = 0
    for a, b in pairwise(ordered):
        shared += next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return sum(map(len, ordered)) - shared


def _forward_flops(shape: Shape, tokens: int, scored: int) -> int:
    """All layers for so many tokens, the head for those that are scored."""
    return shape.layers * shape.forward(tokens, 120) + 2 * shape.head * scored


def _figures(seconds: float, flops: int, rate: float, device: torch.device) -> dict[str, Any]:
    return {
        "seconds": seconds,
        "tflop": flops / 1e12,
        "share_of_gemm": flops / seconds / rate,
        "peak_gb": peak_gb(device),
    }


def _max_logits(
    model: PreTrainedModel,
    prompts: list[list[int]],
    shape: Shape,
    rate: float,
    device: torch.device,
    tokens_per_batch: int,
) -> dict[str, Any]:
    from unlearn.evaluate.maxlogit import _plan, continue_greedily

    plan = _plan([len(prompt) for prompt in prompts], GREEDY, tokens_per_batch)
    continue_greedily(model, prompts[:4], 2)
    seconds = seconds_of(
        lambda: [continue_greedily(model, [prompts[i] for i in rows], GREEDY) for rows in plan], device
    )
    tokens = sum(map(len, prompts)) + (GREEDY - 1) * len(prompts)
    return _figures(seconds, _forward_flops(shape, tokens, GREEDY * len(prompts)), rate, device)
