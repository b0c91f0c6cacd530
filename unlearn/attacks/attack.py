"""What an attack is: something that is done to an unlearned model, or another way to ask it, at several levels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from unlearn.config.schema import Config, is_number
from unlearn.data.corpora import Reading
from unlearn.errors import UserError
from unlearn.evaluate.harness import evaluate
from unlearn.evaluate.suite import Suite
from unlearn.models.group import ModelGroup
from unlearn.records.legacy import flat_metrics

Metrics = dict[str, float]  # "MODEL/TASK/QUERY/METRIC" -> value, as in metrics.json
Measured = Generator[tuple[float, Metrics], None, None]


@dataclass(frozen=True)
class Victim:
    """A model under attack, what it is asked, and what an attacker knows of its unlearning.

    Args:
        model: the whole model, with the matrices of the run, or the base model. Nothing requires gradients.
        layer: l, whose states were pushed.
        label: "unlearned", "base" or "ignorant", the first part of every metric's name.
        trained: full names of the matrices that unlearning changed.
        controls: topic -> control vector, float32 [D]; empty for methods that have none.
        corpora: topic -> the corpora that it was trained on, "forget" and "retain" -> path.
        reading: how these corpora are read.
        max_length: tokens of a training text.
        suite: what is asked after a change of the model.
        config: of the run, with the evaluation that `suite` comes from. Attacks that ask otherwise start from it.
        base: inside the block, `model` is the base model.
        suites: other questions that attacks have built, for whichever model is asked next.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    layer: int
    label: str = "unlearned"
    trained: Sequence[str] = ()
    controls: Mapping[str, Tensor] = field(default_factory=dict)
    corpora: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    reading: Reading = field(default_factory=Reading)
    max_length: int = 512
    seed: int = 0
    suite: Suite = field(default_factory=lambda: Suite({}, {}, {}, None))
    config: Config = field(default_factory=Config)
    tokens_per_batch: int = 8192
    base: Callable[[], AbstractContextManager[Any]] = nullcontext
    suites: dict[tuple[int, float], Suite] = field(default_factory=dict)

    def ask(self, suite: Suite, about: str) -> Metrics:
        """The metrics of the model as it is now; `about` says on the screen how it is."""
        [answers] = evaluate(
            ModelGroup(self.model),
            self.tokenizer,
            suite,
            label=self.label,
            about=about,
            tokens_per_batch=self.tokens_per_batch,
        )
        return flat_metrics(answers.scores)


class Attack(ABC):
    """Measures a model at several levels: bits, steps, layers. Then the model is as it was before."""

    levels: Sequence[float] | None  # None: the attack finds them
    level: str = ""  # what a level is called, "{:g}" standing for the number
    beside_ignorant = False  # whether a model that never knew is measured, too, where there is one

    @abstractmethod
    def measure(self, victim: Victim, missing: Collection[float]) -> Measured:
        """Yield each of these levels and its metrics."""

    def told(self, level: float) -> str:
        """A level in words."""
        return self.level.format(level)

    def levels_of(self, victim: Victim) -> Sequence[float]:
        """The levels, ascending where order matters."""
        assert self.levels is not None
        return self.levels

    def members(self, victim: Victim) -> dict[str, list[str]]:
        """Role -> the tasks, and held-out texts, that are asked."""
        return victim.suite.members

    def uses(self, victim: Victim) -> dict[str, Any]:
        """What else than the model's weights and the attack's own arguments determines the metrics."""
        return {}

    def why_not(self, victim: Victim) -> str | None:
        """Why this model cannot be attacked so; None if it can."""
        return None


class Change(Attack):
    """Changes the model in stages, after each of which it is asked the run's own questions."""

    @abstractmethod
    def stages(self, victim: Victim) -> Generator[float, None, None]:
        """Yield each level while the model has it. After the last one, or if it is stopped, all is as before."""

    def measure(self, victim: Victim, missing: Collection[float]) -> Measured:
        """Ask at the missing levels."""
        with closing(self.stages(victim)) as levels:
            for level in levels:
                if level in missing:
                    yield level, victim.ask(victim.suite, self.told(level))


class OnQuestions(Attack):
    """Needs multiple-choice questions."""

    def why_not(self, victim: Victim) -> str | None:
        """Held-out texts have no options."""
        return None if victim.suite.tasks.get("default") else "it needs multiple-choice questions (eval.tasks)"


def check_levels(levels: object, allowed: str, is_allowed: Callable[[float], bool]) -> None:
    """Raise UserError unless there are levels, and all of them are allowed."""
    right = isinstance(levels, list) and all(is_number(x) and is_allowed(x) for x in levels)
    if not right or not levels:
        raise UserError(f"attack.levels={levels} is not allowed: it must be a list of {allowed}.")


def check_positive(attack: Attack, **kinds: type[int] | type[float]) -> None:
    """Raise UserError unless these arguments are numbers above 0 of these types; integers will do for float."""
    for key, kind in kinds.items():
        value = getattr(attack, key)
        if not (is_number(value) and isinstance(value, (kind, int)) and value > 0):
            what = "an integer" if kind is int else "a number"
            raise UserError(f"attack.{key}={value} is not allowed: it must be {what} above 0.")
