"""What every method is: a frozen dataclass of its arguments, which checks itself when it is made.

It imports no torch, so that the arguments on a command line are checked at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from unlearn.methods.rna import RNA

if TYPE_CHECKING:
    from unlearn.methods.objective import Objective, Setup


@dataclass(frozen=True)
class Method(ABC):
    """The base class of all methods.

    Args:
        rna: noise on what the retain loss compares with.

    Raises:
        UserError: an argument is not allowed.
    """

    needs_logits: ClassVar[bool]  # whether it needs the whole model, not only the layers up to l
    needs_preferred: ClassVar[bool] = False  # whether it needs texts that are preferred to the forget texts

    rna: RNA = field(default=RNA(0.0), kw_only=True)

    @abstractmethod
    def objective(self, setup: Setup) -> Objective:
        """What training minimises."""
