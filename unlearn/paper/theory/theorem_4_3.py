"""Theorem 4.3: with noise N(0, eta I) at layer l, is the change of the output N(0, eta J^T J)?

J [D, V] is the gradient of the output, as in the paper; A = J^T is the usual Jacobian. Neither is formed: A z is a JVP,
J r a VJP. S draws, K random directions of the output, B batch, D hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from unlearn.models.memory import in_batches
from unlearn.paper.theory.finished_run import Question
from unlearn.paper.theory.intervals import normal, quartiles
from unlearn.paper.theory.predicted import Predicted

VARIANCES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of the injected noise, in units of the estimated eta
BROKEN = 0.1  # share of the change's mean square that is not linear: from here on the approximation is called broken


def noise_and_output(
    at: Predicted, variance: float, z_SD: Tensor, linear_SV: Tensor, r_VK: Tensor, batch: int
) -> tuple[Tensor, float, float]:
    """The change of the output for noise sqrt(variance) z at layer l.

    Args:
        z_SD, linear_SV: standard normal draws, and A z of each.

    Returns:
        The change along each direction [S, K]; the sum over draws of |change - linear change|^2, and of |linear|^2.
    """
    scale = math.sqrt(variance)

    def of(draws_B: Tensor) -> tuple[Tensor, float, float]:
        change_BV = at.output(scale * z_SD[draws_B]) - before_1V
        expected_BV = scale * linear_SV[draws_B].to(change_BV)  # Eq. 15
        residual, size = (x.square().sum().item() for x in (change_BV - expected_BV, expected_BV))
        return change_BV @ r_VK, residual, size

    with torch.no_grad():
        before_1V = at.output(at.nothing_1D)
        along, residuals, sizes = zip(*in_batches(of, torch.arange(len(z_SD)), batch)[0], strict=True)
    return torch.cat(along), sum(residuals), sum(sizes)


def covariance_errors(along_SK: Tensor, predicted_KK: Tensor) -> dict[str, float]:
    """The sample covariance along directions against the predicted one, eta (J r)^T (J r).

    `variance` is the ratio of the traces, `covariance` the relative error in Frobenius norm, `covariance_by_chance`
    what so few draws of a Gaussian with the predicted covariance give on average. `mean` is the share of the mean
    square that the mean makes up (the theorem's is 0), without bias.
    """
    draws = len(along_SK)
    mean_K, found_KK = along_SK.mean(dim=0), along_SK.T.cov()
    trace, squared = predicted_KK.trace(), predicted_KK.square().sum()
    variance = found_KK.trace()
    shift = mean_K.square().sum() - variance / draws
    return {
        "variance": (variance / trace).item(),
        "covariance": ((found_KK - predicted_KK).norm() / squared.sqrt()).item(),
        "covariance_by_chance": ((squared + trace**2) / (draws - 1) / squared).sqrt().item(),
        "mean": (shift / (shift + variance)).item(),
    }


def one_question(
    at: Predicted, eta: float, *, draws: int, directions: int, batch: int, key: tuple[str | int, ...]
) -> list[dict[str, float]]:
    """The comparison at one prompt, for each of `VARIANCES`."""
    z_SD = normal(draws, at.dim, *key, "z").to(at.device)
    linear_SV = torch.cat(in_batches(lambda z_BD: at.pushed(z_BD).cpu(), z_SD, batch)[0])
    r_KV = normal(directions, linear_SV.shape[1], *key, "r").to(at.device)
    gradient_KD = torch.cat(in_batches(at.pulled, r_KV, batch)[0])
    rows = []
    for share in VARIANCES:
        variance = share * eta
        along_SK, residual, size = noise_and_output(at, variance, z_SD, linear_SV, r_KV.T, batch)
        predicted_KK = variance * gradient_KD @ gradient_KD.T  # r^T (eta J^T J) r
        errors = covariance_errors(along_SK.double(), predicted_KK.double())
        rows.append({"nonlinear": residual / size, **errors})
    return rows


def theorem_4_3(
    model: PreTrainedModel,
    layer: int,
    questions: Sequence[Question],
    eta: float,
    *,
    draws: int,
    directions: int,
    batch: int,
    seed: int,
) -> dict[str, Any]:
    """Injected noise of growing variance, over all questions."""
    injected = []
    for question in tqdm(questions, desc="Theorem 4.3", mininterval=1, disable=None):
        at, key = Predicted(model, layer, question.default), (seed, question.task, question.number)
        injected.append(one_question(at, eta, draws=draws, directions=directions, batch=batch, key=key))
    rows: list[dict[str, Any]] = []
    for share, errors in zip(VARIANCES, zip(*injected, strict=True), strict=True):
        rows.append({"variance_to_eta": share} | {name: quartiles([f[name] for f in errors]) for name in errors[0]})
    broken = [row["variance_to_eta"] for row in rows if row["nonlinear"]["median"] > BROKEN]
    return {"eta": eta, "injected": rows, "linear_breaks_at": broken[0] if broken else None}
