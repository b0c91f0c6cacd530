"""Adaptive RMU: as RMU, with a length in proportion to the representation's own norm.

B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from unlearn.arguments import check_choice, check_number
from unlearn.methods.losses import mean_norms
from unlearn.methods.misdirection import MisdirectionMethod

if TYPE_CHECKING:
    from torch import Tensor

    from unlearn.methods.inputs import ForgetBatch


@dataclass(frozen=True)
class AdaptiveRMU(MisdirectionMethod):
    """y^f = beta ||h(x^f)|| u (section 3.1).

    Args:
        beta: the length of the target in units of ||h(x^f)||, above 0.
        norm: what ||h(x^f)|| is. "sample": the frozen model's norm, mean over the sample's own counted tokens (the
            paper). "first_batch": the updated model's norm, mean over all samples of the topic's first batch, measured
            once (the published code).
        rna: noise on the target of the retain loss.
    """

    beta: float
    norm: str = "sample"

    def __post_init__(self) -> None:
        check_number("beta", self.beta, above=0)
        check_choice("norm", self.norm, ("sample", "first_batch"))

    def target(self, batch: ForgetBatch) -> Tensor:
        """beta times the norm, times u: float32 [B, T, D]."""
        if self.norm == "first_batch":
            coefficient = batch.measured_once(
                "coefficient", lambda: self.beta * mean_norms(batch.updated().detach(), batch.counted_BT).mean()
            )
            return batch.at_every_position(coefficient * batch.control_D)
        frozen_BTD = batch.frozen()
        norms_B = mean_norms(frozen_BTD, batch.counted_BT)
        return (self.beta * norms_B[:, None, None] * batch.control_D).expand(frozen_BTD.shape)
