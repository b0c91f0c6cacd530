"""Adaptive RMU: as RMU, with a length in proportion to the representation's own norm.

B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Generator, Tensor

from unlearn.methods.directions import uniform_direction
from unlearn.methods.losses import mean_norms
from unlearn.methods.misdirection import ForgetBatch, MisdirectionMethod

COEFFICIENT = "coefficient."


class AdaptiveRMU(MisdirectionMethod):
    """y^f = beta ||h(x^f)|| u (section 3.1); `norm` defines ||h(x^f)||.

    "sample": the frozen model's norm, mean over the sample's own counted tokens (the paper).
    "first_batch": the updated model's norm, mean over all samples of the topic's first batch. It is measured once (the
    published code).
    """

    def __init__(self, beta: float, norm: str = "sample") -> None:
        assert norm in ("sample", "first_batch"), norm
        self.beta, self.norm = beta, norm
        self._coefficients: dict[str, Tensor] = {}  # of "first_batch"

    def control_vector(self, dim: int, generator: Generator) -> Tensor:
        """Uniform direction u: float32 [D]."""
        return uniform_direction(dim, generator)

    def target(self, batch: ForgetBatch) -> Tensor:
        """beta times the norm, times u: float32 [B, T, D]."""
        if self.norm == "first_batch":
            if batch.topic not in self._coefficients:
                norms_B = mean_norms(batch.updated().detach(), batch.counted_BT)
                self._coefficients[batch.topic] = self.beta * norms_B.mean()
            return batch.at_every_position(self._coefficients[batch.topic] * batch.control_D)
        frozen_BTD = batch.frozen()
        norms_B = mean_norms(frozen_BTD, batch.counted_BT)
        return (self.beta * norms_B[:, None, None] * batch.control_D).expand(frozen_BTD.shape)

    def state(self) -> dict[str, Tensor]:
        """With "first_batch", each topic's coefficient beta ||h||: {"coefficient.TOPIC": scalar}."""
        return {f"{COEFFICIENT}{topic}": value for topic, value in self._coefficients.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take the coefficients over."""
        found = {key.removeprefix(COEFFICIENT): value for key, value in state.items() if key.startswith(COEFFICIENT)}
        self._coefficients = found
