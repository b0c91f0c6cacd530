"""Assumption 4.2: are the differences h(perturbed) - h(default) at layer l, predicted position, N(0, eta I)?

No matrix is larger than the smaller of N x N and D x D.
N questions, D hidden size, K directions, S simulations.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats
from torch import Tensor

from unlearn.paper.theory.intervals import mean_interval, normal

SIMULATIONS = 200  # of the null hypothesis
LEVEL = 0.05  # of the tests and of the false discovery rate
FEWEST = 8  # questions that the estimates need
MOST = 5000  # rows for which Shapiro and Wilk's p is valid


def describe(d_ND: Tensor, *, directions: int, seed: int) -> dict[str, Any]:
    """Mean, eta, isotropy and normality of differences of states, d_ND [N, D].

    `eta` is the maximum-likelihood estimate under the assumption, the mean square of a coordinate (about zero).
    """
    d_ND = d_ND.double()
    count, dim = d_ND.shape
    assert count >= FEWEST, count
    random_DK = normal(dim, directions, seed, "directions").double()
    return {
        "eta": mean_interval(d_ND.square().mean(dim=1)),
        "mean": mean_test(d_ND, seed),
        "isotropy": isotropy_test(d_ND, seed),
        "normality": {"random directions": normality((d_ND @ random_DK).numpy())},
    }


def mean_test(d_ND: Tensor, seed: int) -> dict[str, float]:
    """The share of the mean square that a common mean makes up, unbiased, and p of "no mean" by flips of signs.

    |mean|^2 is estimated from products of different questions, so that its expectation is 0 where there is no mean.
    """
    count = len(d_ND)
    signs_SN = normal(SIMULATIONS, count, seed, "signs").sign().to(d_ND)
    null_S = (signs_SN @ d_ND).square().sum(dim=1)
    observed, total = d_ND.sum(dim=0).square().sum(), d_ND.square().sum()
    return {
        "share": ((observed - total) / (count - 1) / total).item(),
        "p": (1 + int((null_S >= observed).sum())) / (1 + SIMULATIONS),
    }


def isotropy(d_ND: Tensor) -> float:
    """(tr C)^2 / (D tr C^2) of the covariance C.

    It is 1 if all eigenvalues are equal, 1/D if only one is not 0; times D it counts directions. tr C^2 is estimated
    without bias for any distribution (Himeno and Yamada 2014, J. Multivariate Analysis 130): the sample covariance's
    own is too large where D is not far below N.
    """
    count, dim = d_ND.shape
    centred_ND = d_ND - d_ND.mean(dim=0)
    n = count - 1
    # X X^T and X^T X have the same eigenvalues but for zeros: the smaller one will do.
    product = centred_ND @ centred_ND.T if count < dim else centred_ND.T @ centred_ND
    trace, square = product.trace() / n, product.square().sum() / n**2
    fourth = centred_ND.square().sum(dim=1).square().sum() / n
    unbiased = n / (count * (n - 1) * (n - 2)) * (n * (n - 1) * square + trace**2 - count * fourth)
    return (trace**2 / (dim * unbiased)).item()


def isotropy_test(d_ND: Tensor, seed: int) -> dict[str, float]:
    """`isotropy`, and what N(0, eta I) of the same N and D gives: p is the share of simulations that are less so."""
    observed, (count, dim) = isotropy(d_ND), d_ND.shape
    null = [isotropy(normal(count, dim, seed, "isotropic", s).double()) for s in range(SIMULATIONS)]
    return {
        "isotropy": observed,
        "directions": observed * dim,
        "p": (1 + sum(other <= observed for other in null)) / (1 + SIMULATIONS),
    }


def normality(x_NK: np.ndarray) -> dict[str, float]:
    """Shapiro and Wilk's test of each column, and the share of columns that are not normal.

    The false discovery rate is 5 % by Benjamini and Yekutieli, which holds for columns that depend on each other, as
    directions of one sample do.
    """
    p_K = np.array([stats.shapiro(column).pvalue for column in x_NK[:MOST].T])
    rejected_K = stats.false_discovery_control(p_K, method="by") <= LEVEL
    return {"directions": len(p_K), "rejected": float(rejected_K.mean())}
