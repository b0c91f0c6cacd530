"""Theorem 5.2 against a model that RNA has trained, beside its counterpart without RNA.

N questions, D hidden size.
"""

from __future__ import annotations

from typing import Any

from scipy import stats
from torch import Tensor

from unlearn.evaluate.statistics import CONFIDENCE
from unlearn.paper.theory.differences import describe
from unlearn.paper.theory.predicted import States
from unlearn.paper.theory.rejection import exact, published
from unlearn.paper.theory.spread import mean_interval


def share(hits_N: Tensor) -> dict[str, float]:
    """Share of questions with Wilson's 95 % interval."""
    interval = stats.binomtest(int(hits_N.sum()), len(hits_N)).proportion_ci(CONFIDENCE, method="wilson")
    return {"mean": hits_N.double().mean().item(), "low": interval.low, "high": interval.high}


def against(rna: States, rm: States, nu: float, *, directions: int, seed: int) -> dict[str, Any]:
    """How often the RNA model's change of the loss opposes that of the model without, and what the theorem predicts.

    Args:
        rna, rm: both models on the same questions.
        nu: the variance of the noise that the first was trained with.

    Assumption 5.1 takes h_rna(default) for h_rm(default) + N(0, nu I). The same estimates as those of Assumption 4.2
    say how large that difference really is (`nu_measured`), and the theorem is read with either nu.
    """
    rm_N, rna_N = rm.loss_per_N - rm.loss_N, rna.loss_per_N - rna.loss_N
    known_N = rm_N != 0
    opposed_N = (rm_N * rna_N <= 0)[known_N]  # Eq. 10
    worse_N = (rm_N > 0)[known_N]  # "the loss is increased" by a forget-token, as section 5.2 takes for granted
    eta = (rm.h_per_ND - rm.h_ND).double().square().mean().item()
    between = describe(rna.h_ND - rm.h_ND, rm.h_ND, directions=directions, seed=seed)
    g_N, g_per_N = rm.g_ND.norm(dim=1), rm.g_per_ND.norm(dim=1)
    predicted = {
        name: {form.__name__: mean_interval(form(g_N, g_per_N, variance / eta)) for form in (published, exact)}
        for name, variance in (("nu", nu), ("nu_measured", between["eta"]["mean"]))
    }
    return {
        "questions": int(known_N.sum()),
        "eta": eta,
        "nu": nu,
        "nu_measured": between["eta"]["mean"],
        "rejected": share(opposed_N),
        "rejected_where_rm_loss_rises": share(opposed_N[worse_N]) if worse_N.any() else None,
        "rm_loss_rises": share(worse_N),
        "change_of_loss": {"rm": mean_interval(rm_N), "rna": mean_interval(rna_N)},
        "change_of_loss_smaller": share(rna_N.abs() < rm_N.abs()),
        "predicted": predicted,
        "assumption_5_1": between,
    }
