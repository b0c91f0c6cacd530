"""Random Noise Augmentation (Eq. 8) as a user asks for it; `noise.py` adds the noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

from unlearn.arguments import check_choice, check_number

RETAIN_TARGET, FORGET_TARGET, GRADIENT, RETAIN_INPUT = PLACES = (
    "retain_target",
    "forget_target",
    "gradient",
    "retain_input",
)


@dataclass(frozen=True)
class RNA:
    """Gaussian noise on what the retain loss compares with, or elsewhere, drawn anew for every step and dimension.

    Args:
        nu: the scale of the noise in units of the hidden states at layer l, at least 0. 0 means no noise.
        scale: what `nu` means: the standard deviation of the noise ("std", the published code) or its variance
            ("variance", Eq. 8).
        per: what has noise of its own: each token ("token", the published code) or each text, whose tokens then share
            one vector ("text", as Eq. 8 reads where h is the mean over a text's tokens).
        where: where the noise goes. "retain_target" is RNA. The others are placebos, for methods on representations:
            does it matter where the noise is? Each draws what RNA would draw, of the same norm.
            "forget_target": on the target of the forget loss, at the tokens that this loss counts. In the gradient it
            is then alpha times weaker than RNA's, as alpha weighs the retain loss alone; nu alpha times as large makes
            up for that.
            "gradient": on the gradient of each trained matrix, in a direction drawn at random. Its norm is that by
            which RNA with this nu would change this matrix's gradient in this step; a second backward pass measures it.
            "retain_input": on the retain texts' states that enter the trained layers (those of layer l-3, not of the
            embeddings, as the layers up to l-3 run once for all variants), in the model that is trained alone; the
            target stays that of the clean texts. The residual stream carries it to layer l.

    Raises:
        UserError: an argument is not allowed.

    >>> RNA(nu=0.09, scale="variance").std
    0.3
    """

    nu: float
    scale: str = "std"
    per: str = "token"
    where: str = RETAIN_TARGET

    def __post_init__(self) -> None:
        check_number("nu", self.nu, at_least=0)
        check_choice("scale", self.scale, ("std", "variance"))
        check_choice("per", self.per, ("token", "text"))
        check_choice("where", self.where, PLACES)

    @property
    def std(self) -> float:
        """The standard deviation of the noise."""
        return math.sqrt(self.nu) if self.scale == "variance" else self.nu
