"""Asking otherwise: the model stays as it is, and the questions change.

Multiple choice by letters can fail where knowledge is there, and be right where it is not.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import Any

from unlearn.attacks.attack import Measured, OnQuestions, Victim, check_levels
from unlearn.config.schema import EvalConfig
from unlearn.errors import UserError
from unlearn.evaluate.forms import PROMPT, Form, continuation, shuffled
from unlearn.evaluate.questions import load_questions
from unlearn.evaluate.suite import Suite
from unlearn.models.loading import Source


class Asking(OnQuestions):
    """The run's tasks and queries in another form."""

    def uses(self, victim: Victim) -> dict[str, Any]:
        """The harness that makes the questions from those of the run, which are known."""
        return {"lm_eval": version("lm_eval")}

    def measure(self, victim: Victim, missing: Collection[float]) -> Measured:
        """Ask each of these levels' questions."""
        for level in (level for level in self.levels_of(victim) if level in missing):
            yield level, victim.ask(self.suite(victim, level), self.told(level))

    @abstractmethod
    def asked(self, e: EvalConfig, level: float) -> tuple[EvalConfig, Form | None]:
        """The evaluation and the form of its tasks."""

    def suite(self, victim: Victim, level: float) -> Suite:
        """The questions of a level, without held-out texts. They are built once for both models."""
        known = id(self), level
        if known not in victim.suites:
            evaluation, form = self.asked(victim.config.eval, level)
            asked_of = {q: [r for r in roles if r in evaluation.tasks] for q, roles in evaluation.asked_of.items()}
            own = replace(evaluation, texts=replace(evaluation.texts, corpora={}), asked_of=asked_of)
            config = replace(victim.config, eval=own)
            victim.suites[known] = load_questions(config, Source.of(config.model), victim.tokenizer, form).suite
        return victim.suites[known]


@dataclass(frozen=True)
class FewShot(Asking):
    """With so many answered questions before each one, as lm-eval draws them.

    WMDP has no examples of its own: they are other questions of the task, which is what a few relearnt facts in the
    context are.
    """

    levels: Sequence[int]
    level = "{:g} examples"

    def __post_init__(self) -> None:
        check_levels(self.levels, "numbers of examples", lambda x: isinstance(x, int) and x > 0)

    def uses(self, victim: Victim) -> dict[str, Any]:
        """The examples, too."""
        return super().uses(victim) | {"asked": [self.suite(victim, level).hashes for level in self.levels]}

    def asked(self, e: EvalConfig, level: float) -> tuple[EvalConfig, Form | None]:
        """With examples."""
        return replace(e, num_fewshot=int(level)), None


@dataclass(frozen=True)
class Continuation(Asking):
    """Answered by the options' own log-likelihood instead of letters, as lm-eval's mmlu_continuation.

    Args:
        prompt: a template over the question's columns, in Jinja, as in lm-eval's tasks.
    """

    prompt: str = PROMPT
    levels = (1,)

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str) or "question" not in self.prompt:
            raise UserError(f"attack.prompt={self.prompt!r} is not allowed: it must be a text with {{{{question}}}}.")

    def asked(self, e: EvalConfig, level: float) -> tuple[EvalConfig, Form | None]:
        """Without letters."""
        return e, partial(continuation, prompt=self.prompt)


@dataclass(frozen=True)
class Shuffled(Asking):
    """With the options of every question in another order, drawn anew for each of `levels`, the seeds."""

    levels: Sequence[int]
    level = "order {:g}"

    def __post_init__(self) -> None:
        check_levels(self.levels, "seeds, integers from 0", lambda x: isinstance(x, int) and x >= 0)

    def asked(self, e: EvalConfig, level: float) -> tuple[EvalConfig, Form | None]:
        """With other letters."""
        return e, partial(shuffled, seed=int(level))


@dataclass(frozen=True)
class Rephrased(Asking):
    """Other tasks of lm-eval, by role, in place of the run's own: rephrased, translated or cleaned question sets."""

    tasks: Mapping[str, Sequence[str]]
    levels = (1,)

    def __post_init__(self) -> None:
        named = isinstance(self.tasks, dict) and all(isinstance(names, list) for names in self.tasks.values())
        if not named:
            raise UserError(f"attack.tasks={self.tasks} is not allowed: it must be role: [task, ...].")

    def why_not(self, victim: Victim) -> str | None:
        """Somebody must name them."""
        return None if self.tasks else "name the tasks, e.g. +attack.tasks.forget=[TASK]"

    def uses(self, victim: Victim) -> dict[str, Any]:
        """The questions of the other tasks."""
        return super().uses(victim) | {"asked": self.suite(victim, 1).hashes}

    def members(self, victim: Victim) -> dict[str, list[str]]:
        """Those of the other tasks."""
        return self.suite(victim, 1).members

    def asked(self, e: EvalConfig, level: float) -> tuple[EvalConfig, Form | None]:
        """Other tasks."""
        return replace(e, tasks={role: list(names) for role, names in self.tasks.items()}), None
