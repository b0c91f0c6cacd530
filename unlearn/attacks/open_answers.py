"""Open answers: what the model says when it is given no options.

Models after representation misdirection are known to fail multiple choice by talking nonsense. So beside what comes of
the right answer, there is how much of the text is nonsense.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from statistics import fmean
from typing import Any

from lm_eval.utils import apply_template
from rouge_score.rouge_scorer import RougeScorer

from unlearn.attacks.attack import Measured, Metrics, OnQuestions, Victim, check_levels, check_positive
from unlearn.evaluate.forms import PROMPT, options
from unlearn.evaluate.maxlogit import max_logits
from unlearn.evaluate.suite import Suite
from unlearn.evaluate.texts import Passage
from unlearn.models.group import ModelGroup

GRAM = 3  # tokens of a sequence that counts as repeated
ROUGE = RougeScorer(["rougeL"], use_stemmer=True)


@dataclass(frozen=True)
class Open:
    """A question without its options, and the text of the right one."""

    task: str
    number: int
    prompt: str
    right: str


Asked = Mapping[str, Sequence[Open]]  # task -> its questions


@dataclass(frozen=True)
class OpenAnswers(OnQuestions):
    """Greedy answers of so many tokens to the first questions of each task.

    Metrics, means over questions: `rouge`, how much of the right option's text is in the answer (ROUGE-L, recall);
    `nats`, negative log-likelihood of that text, nats a token; `repeated`, the share of the answer's sequences of
    three tokens that occurred in it before; `base_nats`, negative log-likelihood of the answer under the base model,
    nats a token.

    Args:
        levels: tokens of an answer.
        questions: of each task, the first so many of those that are asked.
        prompt: a template over the question's columns, in Jinja, as in lm-eval's tasks.
    """

    levels: Sequence[int]
    questions: int = 100
    prompt: str = PROMPT
    level = "{:g} tokens"

    def __post_init__(self) -> None:
        check_levels(self.levels, f"integers from {GRAM}", lambda x: isinstance(x, int) and x >= GRAM)
        check_positive(self, questions=int)

    def measure(self, victim: Victim, missing: Collection[float]) -> Measured:
        """Answer and judge."""
        asked = self._asked(victim)
        right = {o: f" {o.right}" for o in _all(asked)}
        of_right = _renamed(victim.ask(_passages(asked, right), "right answers"), "nats")
        for level in (level for level in self.levels if level in missing):
            answered = greedy_answers(victim, [o.prompt for o in _all(asked)], int(level))
            yield level, of_right | self._judged(victim, asked, dict(zip(_all(asked), answered, strict=True)))

    def _judged(self, victim: Victim, asked: Asked, answers: Mapping[Open, list[int]]) -> Metrics:
        """Of the answers, as token ids."""
        decode = victim.tokenizer.decode
        with victim.base():
            of_base = victim.ask(_passages(asked, {o: decode(ids) for o, ids in answers.items()}), "own answers")
        figures = _renamed(of_base, "base_nats")
        for task, found in asked.items():
            texts = [decode(answers[o], skip_special_tokens=True) for o in found]
            rouge = [ROUGE.score(o.right, text)["rougeL"].recall for o, text in zip(found, texts, strict=True)]
            named = f"{victim.label}/{task}/default"
            figures |= {f"{named}/rouge": fmean(rouge), f"{named}/repeated": fmean(repeated(answers[o]) for o in found)}
        return figures

    def _asked(self, victim: Victim) -> Asked:
        """The questions of each task. Raises UserError for a task without options."""
        found = {}
        for name, task in victim.suite.tasks["default"]["tasks"].items():
            documents = {request.doc_id: request.doc for request in task.instances}
            taken = sorted(documents.items())[: self.questions]
            found[name] = [_open(self.prompt, name, number, document) for number, document in taken]
        return found


def _open(prompt: str, task: str, number: int, document: Mapping[str, Any]) -> Open:
    choices, answer = options(document, task, number, "open answers need")
    return Open(task, number, apply_template(prompt, dict(document)), choices[answer])


def greedy_answers(victim: Victim, prompts: Sequence[str], count: int) -> list[list[int]]:
    """`count` tokens after each prompt, up to the end of the text if the model ends it."""
    group, batch = ModelGroup(victim.model), victim.tokens_per_batch
    [found] = max_logits(group, victim.tokenizer, prompts, count=count, tokens_per_batch=batch, label="of answers")
    end = victim.tokenizer.eos_token_id
    return [list(takewhile(lambda token: token != end, tokens)) for tokens in found.tokens_NK.tolist()]


def repeated(tokens: Sequence[int]) -> float:
    """The share of sequences of GRAM tokens that occurred before; 0 if there are fewer than two."""
    grams = [tuple(tokens[i : i + GRAM]) for i in range(len(tokens) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _all(asked: Asked) -> list[Open]:
    return [question for found in asked.values() for question in found]


def _passages(asked: Asked, texts: Mapping[Open, str]) -> Suite:
    """A suite that asks how likely these texts are after their prompts; empty ones are left out."""
    passages = {
        task: [Passage(o.number, o.prompt, texts[o]) for o in found if texts[o].strip()]
        for task, found in asked.items()
    }
    kept = {task: found for task, found in passages.items() if found}
    return Suite({}, {}, {}, None, {"default": kept} if kept else {}, {})


def _renamed(metrics: Metrics, name: str) -> Metrics:
    """The metric `nats` alone, under another name."""
    return {f"{key.rpartition('/')[0]}/{name}": v for key, v in metrics.items() if key.endswith("/nats")}
