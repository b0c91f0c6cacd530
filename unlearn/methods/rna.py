"""Random Noise Augmentation (Eq. 8) as a user asks for it; `noise.py` adds the noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

from unlearn.arguments import check_choice, check_number


@dataclass(frozen=True)
class RNA:
    """Gaussian noise on what the retain loss compares with, drawn anew for every step and dimension.

    Args:
        nu: the scale of the noise in units of the hidden states at layer l, at least 0. 0 means no noise.
        scale: what `nu` means: the standard deviation of the noise ("std", the published code) or its variance
            ("variance", Eq. 8).
        per: what has noise of its own: each token ("token", the published code) or each text, whose tokens then share
            one vector ("text", as Eq. 8 reads where h is the mean over a text's tokens).

    Raises:
        UserError: an argument is not allowed.

    >>> RNA(nu=0.09, scale="variance").std
    0.3
    """

    nu: float
    scale: str = "std"
    per: str = "token"

    def __post_init__(self) -> None:
        check_number("nu", self.nu, at_least=0)
        check_choice("scale", self.scale, ("std", "variance"))
        check_choice("per", self.per, ("token", "text"))

    @property
    def std(self) -> float:
        """The standard deviation of the noise."""
        return math.sqrt(self.nu) if self.scale == "variance" else self.nu
