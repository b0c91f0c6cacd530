"""What an attack is: it changes an unlearned model, or reads its states, at several levels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from unlearn.arguments import is_number
from unlearn.data.corpora import Reading
from unlearn.errors import UserError
from unlearn.evaluation.harness import evaluate
from unlearn.evaluation.suite import Suite
from unlearn.models.group import ModelGroup
from unlearn.records.attacks import UNLEARNED, half_scores
from unlearn.records.scores import Score

Measured = Generator[tuple[float, list[Score]], None, None]


@dataclass(frozen=True)
class Unlearning:
    """What an attacker knows of how a model was unlearned.

    Args:
        layer: l, whose states were pushed.
        trained: full names of the matrices that unlearning changed.
        controls: topic -> control vector, float32 [D]; empty for methods that have none.
        corpora: topic -> its training corpora, "forget" and "retain" -> path.
        reading: how these corpora are read.
        max_length: tokens of a training text.
        seed: of the run.
    """

    layer: int
    trained: Sequence[str] = ()
    controls: Mapping[str, Tensor] = field(default_factory=dict)
    corpora: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    reading: Reading = field(default_factory=Reading)
    max_length: int = 512
    seed: int = 0


@dataclass(frozen=True)
class Target:
    """A model under attack, and the questions that it is asked.

    Args:
        model: the whole model: unlearned, base or retrained. Nothing requires gradients.
        label: "unlearned", "base" or "retrained", the `model` of its scores.
        unlearning: that of the run, also for the other models.
        suite: the questions and held-out texts.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    unlearning: Unlearning
    suite: Suite = field(default_factory=lambda: Suite({}, {}, {}, None))
    label: str = UNLEARNED
    tokens_per_batch: int = 8192

    def evaluate(self, about: str) -> list[Score]:
        """The scores of the model in its present state, which `about` names on the screen."""
        [answers] = evaluate(
            ModelGroup(self.model),
            self.tokenizer,
            self.suite,
            label=self.label,
            about=about,
            tokens_per_batch=self.tokens_per_batch,
        )
        return answers.scores + half_scores(answers.samples)


class Attack(ABC):
    """Measures a model at several levels: bits, steps, layers. Afterwards the model is as it was before."""

    levels: Sequence[float] | None  # None: every level that the model has
    level: str = "-"  # a level in words; "{:g}" stands for its number
    at_once = False  # whether all levels are measured together

    @abstractmethod
    def measure(self, target: Target, missing: Collection[float]) -> Measured:
        """Yield each of these levels with its scores, in the order of `levels_of`."""

    def level_name(self, level: float) -> str:
        """A level in words."""
        return self.level.format(level)

    def levels_of(self, target: Target) -> Sequence[float]:
        """The levels in the order in which they are measured."""
        assert self.levels is not None
        return self.levels

    def depends_on(self, target: Target) -> dict[str, Any]:
        """What determines the scores beside the model's weights, the questions and the attack's own arguments."""
        return {}

    def obstacle(self, target: Target) -> str | None:
        """Why this attack cannot be made on this model; None if it can."""
        return None

    def remark(self, target: Target) -> str | None:
        """What a reader of the results has to know of this attack on this model."""
        return None


class Change(Attack):
    """Changes the model step by step. At each level the model is evaluated."""

    @abstractmethod
    def stages(self, target: Target) -> Generator[float, None, None]:
        """Yield each level while the model is at it. The model is restored at the end, also if it is stopped early."""

    def measure(self, target: Target, missing: Collection[float]) -> Measured:
        """Evaluate at the missing levels."""
        with closing(self.stages(target)) as stages:
            for level in stages:
                if level in missing:
                    yield level, target.evaluate(self.level_name(level))


def check_levels(levels: object, allowed: str, is_allowed: Callable[[float], bool]) -> None:
    """Raise UserError unless `levels` is a list of allowed numbers, at least one."""
    right = isinstance(levels, list) and all(is_number(x) and is_allowed(x) for x in levels)
    if not right or not levels:
        raise UserError(f"attack.levels={levels} is not allowed: it must be a list of {allowed}.")


def check_positive(attack: Attack, **kinds: type[int] | type[float]) -> None:
    """Raise UserError unless these arguments are numbers above 0 of these types. An integer is a float, too."""
    for key, kind in kinds.items():
        value = getattr(attack, key)
        if not (is_number(value) and isinstance(value, (kind, int)) and value > 0):
            what = "an integer" if kind is int else "a number"
            raise UserError(f"attack.{key}={value} is not allowed: it must be {what} above 0.")
