"""Theorem 5.2: how probable is it that noise of RNA rejects a forget-token's effect, Delta J^rna / Delta J^rm <= 0?

Measured with noise injected into the model, on a model that RNA has trained, and in closed form. eta and nu are
variances. S draws, B batch, D hidden size, N questions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from unlearn.models.memory import in_batches
from unlearn.paper.theory.assumptions import describe
from unlearn.paper.theory.finished_run import Question
from unlearn.paper.theory.intervals import mean_interval, normal, quartiles, share_of
from unlearn.paper.theory.predicted import Predicted, States

RATIOS = (0.01, 0.1, 1.0, 10.0, 100.0)  # nu / eta
SMALL = 1e-4  # of the estimated eta: there losses are nearly linear (`linear` beside it tells), and formulas are tested
BINS = ("low", "middle", "high")  # thirds of the questions, by |g_per| / |g|


def published(g: Tensor, g_per: Tensor, nu_to_eta: float) -> Tensor:
    """Eq. 27 as it is printed: 1/2 - arctan(sqrt(eta/nu) / (1 + |g_per| / |g|)) / pi, from the gradients' norms."""
    return 0.5 - torch.atan2(g, math.sqrt(nu_to_eta) * (g + g_per)) / math.pi


def exact(g: Tensor, g_per: Tensor, nu_to_eta: float) -> Tensor:
    """Eq. 27 with the scale of a sum of independent Gaussians: sqrt(nu/eta) sqrt(1 + (|g_per| / |g|)^2).

    The sum's variance is nu (|g_per|^2 + |g|^2), where the paper's scale has (|g_per| + |g|)^2.
    """
    return 0.5 - torch.atan2(g, math.sqrt(nu_to_eta) * torch.hypot(g, g_per)) / math.pi


def gradient_ratio(g: Tensor, g_per: Tensor) -> float:
    """|g_per| / |g|; finite also where a loss is so small that its gradient is 0 in float32."""
    return (g_per / g.clamp_min(torch.finfo(g.dtype).tiny)).clamp_max(torch.finfo(g.dtype).max).item()


def rejected(rna: Tensor, rm: Tensor) -> float:
    """The share of pairs of loss changes with rna / rm <= 0 (Eq. 10). Pairs with rm = 0 have no ratio."""
    has_ratio = rm != 0
    return (rna * rm <= 0)[has_ratio].double().mean().item() if has_ratio.any() else math.nan


def linear(g_D: Tensor, g_per_SD: Tensor, nu_to_eta: float, noise_3SD: Tensor) -> float:
    """`rejected` of the linearised losses (Eq. 18 and 21), which is what both closed forms are about.

    g_per_SD may be one gradient [D] for all draws.
    """
    epsilon_SD, delta_1_SD, delta_2_SD = noise_3SD
    rm_S = epsilon_SD @ g_D
    return rejected(rm_S + math.sqrt(nu_to_eta) * ((delta_1_SD * g_per_SD).sum(dim=1) - delta_2_SD @ g_D), rm_S)


def injected(at: Predicted, answer: int, eta: float, noise_3SD: Tensor, batch: int) -> dict[str, Any]:
    """Both assumptions are made: epsilon and delta are added to the state at layer l of the default query.

    g_per is then the gradient at h + epsilon, another one for each draw; the closed forms are averaged over draws.
    """
    epsilon_SD = math.sqrt(eta) * noise_3SD[0]
    chunks, _ = in_batches(lambda e_BD: at.loss_and_gradient(e_BD, answer), epsilon_SD, batch)
    loss_per_S, g_per_SD = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    loss_1, g_1D = at.loss_and_gradient(at.nothing_1D, answer)
    rm_S = loss_per_S - loss_1  # Delta J^rm with Eq. 4
    g, g_per_S = g_1D.norm(), g_per_SD.norm(dim=1)
    rows = []
    for ratio in RATIOS:
        delta_1_SD, delta_2_SD = math.sqrt(ratio * eta) * noise_3SD[1:]
        rna_S = _losses(at, epsilon_SD + delta_1_SD, answer, batch) - _losses(at, delta_2_SD, answer, batch)
        row = {"measured": rejected(rna_S, rm_S), "linear": linear(g_1D[0], g_per_SD, ratio, noise_3SD)}
        rows.append(row | closed(g.expand_as(g_per_S), g_per_S, ratio))
    return {"ratio": gradient_ratio(g, g_per_S.median()), "rows": rows}


def closed(g: Tensor, g_per: Tensor, nu_to_eta: float) -> dict[str, float]:
    """Both closed forms, averaged."""
    return {form.__name__: form(g, g_per, nu_to_eta).mean().item() for form in (published, exact)}


def _losses(at: Predicted, added_SD: Tensor, answer: int, batch: int) -> Tensor:
    with torch.no_grad():
        return torch.cat(in_batches(lambda added_BD: at.loss(added_BD, answer), added_SD, batch)[0])


def theorem_5_2(
    model: PreTrainedModel,
    layer: int,
    questions: Sequence[Question],
    eta: float,
    *,
    draws: int,
    batch: int,
    seed: int,
) -> dict[str, Any]:
    """Measured and predicted probabilities by nu / eta, over all questions and by thirds of |g_per| / |g|."""
    small, by_noise = [], []
    for question in tqdm(questions, desc="Theorem 5.2", mininterval=1, disable=None):
        at = Predicted(model, layer, question.default)
        noise_SD = normal(3 * draws, at.dim, seed, question.task, question.number, "losses").to(at.device)
        noise_3SD = noise_SD.view(3, draws, at.dim)
        small.append(injected(at, question.answer, SMALL * eta, noise_3SD, batch))
        by_noise.append(injected(at, question.answer, eta, noise_3SD, batch))
    return {"eta": eta, "injected_small": summary(small), "injected": summary(by_noise)}


def summary(questions: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over questions with intervals for each nu / eta: of all questions, and of each third by gradient ratio."""
    order = np.argsort([f["ratio"] for f in questions], kind="stable")
    parts = {"all": order} | dict(zip(BINS, np.array_split(order, len(BINS)), strict=True))
    return {
        name: {
            "questions": len(part),
            "gradient_ratio": quartiles([questions[i]["ratio"] for i in part]),
            "rows": [
                {"nu_to_eta": ratio}
                | {key: _mean([questions[i]["rows"][k][key] for i in part]) for key in questions[0]["rows"][k]}
                for k, ratio in enumerate(RATIOS)
            ],
        }
        for name, part in parts.items()
        if len(part)
    }


def _mean(values: list[float]) -> dict[str, float]:
    """Of the questions on which there was a ratio."""
    return mean_interval([value for value in values if not math.isnan(value)])


def against(rna: States, rm: States, nu: float, *, directions: int, seed: int) -> dict[str, Any]:
    """How often the RNA model's change of the loss opposes that of the model without, and what the theorem predicts.

    Args:
        rna, rm: both models on the same questions.
        nu: the variance of the noise that the first was trained with.

    Assumption 5.1 takes h_rna(default) for h_rm(default) + N(0, nu I). The same estimates as those of Assumption 4.2
    say how large that difference really is (`nu_measured`).
    """
    rm_N, rna_N = rm.loss_per_N - rm.loss_N, rna.loss_per_N - rna.loss_N
    known_N = rm_N != 0
    opposed_N = (rm_N * rna_N <= 0)[known_N]  # Eq. 10
    worse_N = (rm_N > 0)[known_N]  # "the loss is increased" by a forget-token, as section 5.2 takes for granted
    eta = (rm.h_per_ND - rm.h_ND).double().square().mean().item()
    between = describe(rna.h_ND - rm.h_ND, directions=directions, seed=seed)
    g_N, g_per_N = rm.g_ND.norm(dim=1), rm.g_per_ND.norm(dim=1)
    return {
        "questions": int(known_N.sum()),
        "eta": eta,
        "nu": nu,
        "nu_measured": between["eta"]["mean"],
        "rejected": share_of(opposed_N),
        "rm_loss_rises": share_of(worse_N),
        "predicted": {"nu": {"exact": mean_interval(exact(g_N, g_per_N, nu / eta))}},
        "assumption_5_1": between,
    }
