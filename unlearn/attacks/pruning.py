"""Pruning by magnitude: the smallest entries of every matrix of the decoder layers are set to zero.

What was hidden by small changes of the weights may come back. Embeddings, head and norms stay.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from torch import Tensor

from unlearn.attacks.attack import Change, Target, check_levels
from unlearn.attacks.matrices import restored, rows_by_output, weight_matrices

ROWS = 1024  # of a matrix that are pruned at a time, in float32


@dataclass(frozen=True)
class Pruning(Change):
    """For each output of a matrix, this fraction of its weights, those of smallest magnitude, becomes zero."""

    levels: Sequence[float]
    level = "{:.0%} of weights"

    def __post_init__(self) -> None:
        check_levels(self.levels, "numbers above 0 and below 1", lambda x: 0 < x < 1)

    def stages(self, target: Target) -> Generator[float, None, None]:
        """The model with each fraction pruned."""
        matrices = weight_matrices(target.model)
        for fraction in self.levels:
            with restored(matrices.values()):
                for name, parameter in matrices.items():
                    module = target.model.get_submodule(name.rpartition(".")[0])
                    for matrix_OI in rows_by_output(parameter.data, module):
                        for rows_RI in matrix_OI.split(ROWS):
                            rows_RI.copy_(pruned(rows_RI.float(), fraction))
                yield fraction


def pruned(w_OI: Tensor, fraction: float) -> Tensor:
    """Without this fraction of each row's entries, those of smallest magnitude."""
    count = round(fraction * w_OI.shape[1])
    if count == 0:
        return w_OI
    smallest = w_OI.abs().topk(count, dim=1, largest=False).indices
    return w_OI.scatter(1, smallest, 0.0)
