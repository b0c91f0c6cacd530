"""Evaluation at the paper's shape: ours against lm-eval's `hf`, and MaxLogit's greedy tokens."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import MistralConfig, PreTrainedModel

import unlearn
from bench import shapes
from bench.gpu.device import build, gemm_rate, peak_gb, release, seconds_of
from bench.gpu.results import Results
from bench.work import distinct_tokens, forward_flops, least_flops
from unlearn.models.group import ModelGroup
from unlearn.models.loading import Source, load_tokenizer
from unlearn.training.cost import Shape

TOKENIZER = str(Path(unlearn.__file__).parent / "toy" / "model")  # not used, but lm-eval's class wants one
ANSWERS = (5, 6, 7, 8)
TOKENS_PER_BATCH = 16384
GREEDY = 15  # tokens of MaxLogit
POINTS = 6  # of a grid that is evaluated together
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
    every = [*prompts, *perturbed]
    requests = _requests(every)
    flops = least_flops(shape, every, len(every))
    results.add("c", "work", questions=questions, tokens=sum(map(len, every)), distinct_tokens=distinct_tokens(every))

    def ours() -> dict[str, Any]:
        from unlearn.evaluation.scorer import Scorer

        scorer = Scorer(ModelGroup(model), load_tokenizer(Source(TOKENIZER)), tokens_per_batch)
        scorer._loglikelihood_tokens(_requests(prompts[:16]))  # warm
        seconds = seconds_of(lambda: scorer._loglikelihood_tokens(requests), device)
        return _figures(seconds, flops, rate, device) | {"shares_prefixes": scorer.shares_prefixes}

    def theirs(size: int) -> dict[str, Any]:
        from lm_eval.models.huggingface import HFLM

        adapter = HFLM(pretrained=model, tokenizer=load_tokenizer(Source(TOKENIZER)), batch_size=size, backend="causal")
        run = partial(adapter._loglikelihood_tokens, disable_tqdm=True)
        run(_requests(prompts[:16]))
        seconds = seconds_of(lambda: [run(_requests(part)) for part in (prompts, perturbed)], device)
        return _figures(seconds, flops, rate, device)

    def together() -> dict[str, Any]:
        return _together(model, requests[: len(requests) // 4], device, tokens_per_batch)

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
        release(device)
        results.attempt("c", f"{POINTS} points, a quarter of the requests{note}", together)


def ours(model: PreTrainedModel, questions: int, device: torch.device) -> dict[str, Any]:
    """Seconds of the log-likelihoods of so many questions, the second time."""
    from unlearn.evaluation.scorer import Scorer

    requests = _requests([prompt for part in _prompts(questions, model.config.vocab_size) for prompt in part])
    scorer = Scorer(ModelGroup(model), load_tokenizer(Source(TOKENIZER)), TOKENS_PER_BATCH)
    first, second = (seconds_of(lambda: scorer._loglikelihood_tokens(requests), device) for _ in range(2))
    return {"first_s": first, "seconds": second}


def _together(
    model: PreTrainedModel, requests: list[Request], device: torch.device, tokens_per_batch: int
) -> dict[str, Any]:
    """Seconds of a grid's log-likelihoods, its points one after another and together."""
    from unlearn.evaluation.scorer import Scorer

    tokenizer = load_tokenizer(Source(TOKENIZER))
    deltas = [shapes.random_delta(model, shapes.LAYER, seed) for seed in range(POINTS)]

    def answers(group: ModelGroup) -> list[Any]:
        scorer = Scorer(group, tokenizer, tokens_per_batch)
        scorer._loglikelihood_tokens(requests)
        return scorer._answers

    answers(ModelGroup(model, deltas[:1]))  # warm
    alone: list[Any] = []
    seconds_alone = seconds_of(lambda: alone.extend(answers(ModelGroup(model, [d]))[0] for d in deltas), device)
    group = ModelGroup(model, deltas)
    shared: list[Any] = []
    seconds = seconds_of(lambda: shared.extend(answers(group)), device)
    return {
        "one_after_another_s": seconds_alone,
        "together_s": seconds,
        "saved": 1 - seconds / seconds_alone,
        "shares": group.shares,
        "equal": alone == shared,
        "peak_gb": peak_gb(device),
        "passed": alone == shared,
    }


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
    from unlearn.evaluation.maxlogit import continue_greedily
    from unlearn.evaluation.rows import by_length

    plan = by_length([len(prompt) + GREEDY for prompt in prompts], tokens_per_batch)
    continue_greedily(model, prompts[:4], 2)
    seconds = seconds_of(
        lambda: [continue_greedily(model, [prompts[i] for i in rows], GREEDY) for rows in plan], device
    )
    tokens = sum(map(len, prompts)) + (GREEDY - 1) * len(prompts)
    return _figures(seconds, forward_flops(shape, tokens, tokens // len(prompts), GREEDY * len(prompts)), rate, device)
