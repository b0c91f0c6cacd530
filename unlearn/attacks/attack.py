"""What an attack is: a model that it changes in place, and the stages at which the model is asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from unlearn.config.schema import is_number
from unlearn.errors import UserError


@dataclass(frozen=True)
class Victim:
    """A model under attack, and what an attacker knows of its unlearning.

    Args:
        model: the whole model, with the matrices of the run, or the base model. Nothing requires gradients.
        layer: l, whose states were pushed.
        trained: full names of the matrices that unlearning changed.
        controls: topic -> control vector, float32 [D]; empty for methods that have none.
        corpora: topic -> the corpora that it was trained on, "forget" and "retain" -> path.
        max_length: tokens of a training text.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    layer: int
    trained: Sequence[str] = ()
    controls: Mapping[str, Tensor] = field(default_factory=dict)
    corpora: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    max_length: int = 512
    seed: int = 0


class Attack(ABC):
    """Changes a model in stages. After the last one, and if it is stopped, the model is as it was before."""

    levels: Sequence[float]  # what `stages` yields

    @abstractmethod
    def stages(self, victim: Victim) -> Generator[float, None, None]:
        """Yield each strength (bits, a fraction, a number of steps) while the model has it."""

    def uses(self, victim: Victim) -> dict[str, Any]:
        """What else than the model's weights and the attack's own arguments determines the stages."""
        return {}

    def why_not(self, victim: Victim) -> str | None:
        """Why this model cannot be attacked so; None if it can."""
        return None


def check_levels(levels: Sequence[float], allowed: str, is_allowed: Callable[[float], bool]) -> None:
    """Raise UserError unless there are levels, and all of them are allowed."""
    right = isinstance(levels, list) and all(is_number(x) and is_allowed(x) for x in levels)
    if not right or not levels:
        raise UserError(f"attack.levels={levels} is not allowed: it must be a list of {allowed}.")
