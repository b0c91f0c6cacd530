"""Linear probes: can the right answer be read from the states of a layer, though the model does not give it?

As in Li et al. (2024, section 5.3): a linear classifier of the right option's letter from the state at a question's
last token. It is trained on one half of a role's questions and measured on the other. N questions, L layers, D hidden
size.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from unlearn.attacks.attack import Attack, Measured, Target
from unlearn.attacks.lens import check_layers, chosen_layers
from unlearn.data.batches import pad
from unlearn.evaluation.chat import encode_prompts
from unlearn.evaluation.rows import by_length
from unlearn.models.architectures import decoder_layers, hidden_of
from unlearn.models.memory import in_batches
from unlearn.records.attacks import half_scores
from unlearn.records.samples import Sample
from unlearn.records.scores import NOT_FINITE, Score

BLOCK = 4  # questions in a row that go to one half: a fact may be asked about several times in a row
PENALTIES = tuple(10.0**power for power in range(-1, 6))  # leave-one-out chooses among them


@dataclass(frozen=True)
class Question:
    """A question's task, number, prompt and right answer."""

    task: str
    number: int
    prompt: str
    answer: str

    @property
    def measured(self) -> bool:
        """Whether the probe is measured on it. It is trained on the others."""
        return self.number // BLOCK % 2 == 1

    def sample(self, model: str, role: str, correct: bool) -> Sample:
        """The probe's answer. Questions of one block may be about one fact."""
        fact = str(self.number // BLOCK)
        return Sample(model, role, self.task, "default", self.number, self.prompt, correct=correct, fact=fact)


@dataclass(frozen=True)
class Probe(Attack):
    """Accuracy of a probe at each layer, on each role's unchanged questions (query "default")."""

    levels: Sequence[int] | None = None  # numbers of layers, from 0; None: all
    level = "layer {:g}"
    at_once = True

    def __post_init__(self) -> None:
        check_layers(self.levels)

    def levels_of(self, target: Target) -> Sequence[int]:
        """All layers, or the chosen ones."""
        return chosen_layers(self.levels, target)

    def obstacle(self, target: Target) -> str | None:
        """Held-out texts have no options."""
        return None if target.suite.tasks.get("default") else "it needs multiple-choice questions (eval.tasks)"

    def measure(self, target: Target, missing: Collection[float]) -> Measured:
        """Train a probe for each role and missing layer."""
        by_role = questions_by_role(target)
        states = {role: last_states(target, [q.prompt for q in asked]) for role, asked in by_role.items()}
        for level in self.levels_of(target):
            if level in missing:
                scores = []
                for role, asked in by_role.items():
                    states_ND = states[role][:, level]
                    finite_N = states_ND.isfinite().all(dim=1)
                    answered = probe(asked, states_ND.numpy()) if finite_N.all() else []
                    figures = accuracies(answered) if answered else not_finite(asked, finite_N)
                    measure = "acc" if answered else NOT_FINITE
                    scores += [
                        Score(target.label, role, task, None, "default", measure, value, n=n)
                        for task, (value, n) in figures.items()
                    ]
                    scores += half_scores(q.sample(target.label, role, correct) for q, correct in answered)
                yield level, scores


def questions_by_role(target: Target) -> dict[str, list[Question]]:
    """The questions of each role that has some for both halves."""
    by_role = {role: questions(target, role) for role in target.suite.members}
    return {role: asked for role, asked in by_role.items() if len({q.measured for q in asked}) == 2}


def questions(target: Target, role: str) -> list[Question]:
    """The questions of a role, in the form in which the model is asked them."""
    suite = target.suite
    tasks = suite.tasks["default"]["tasks"]
    asked = []
    for name in suite.members[role]:
        if name in tasks:
            answers = {suite.number(name, r): tasks[name].doc_to_target(r.doc) for r in tasks[name].instances}
            prompts = suite.prompts("default", name)
            numbers = [number for number in prompts if suite.is_drawn(role, name, number)]
            asked += [Question(name, number, prompts[number], str(answers[number])) for number in numbers]
    return asked


def probe(asked: Sequence[Question], states_ND: np.ndarray) -> list[tuple[Question, bool]]:
    """Each measured question, and whether a probe that was trained on the others gives the right answer."""
    measured = np.array([q.measured for q in asked])
    answers = np.array([q.answer for q in asked])
    if len(set(answers[~measured])) < 2:  # nothing to tell apart
        predicted = np.full(measured.sum(), answers[~measured][0])
    else:
        classifier = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=PENALTIES))
        predicted = classifier.fit(states_ND[~measured], answers[~measured]).predict(states_ND[measured])
    correct = (predicted == answers[measured]).tolist()
    return list(zip([q for q in asked if q.measured], correct, strict=True))


def accuracies(answered: Sequence[tuple[Question, bool]]) -> dict[str, tuple[float, int]]:
    """Task -> accuracy on its measured questions, and their number.

    Of many small tasks (300 questions of MMLU's 57 subjects) some have none: all of theirs are trained on.
    """
    by_task: dict[str, list[bool]] = {}
    for question, correct in answered:
        by_task.setdefault(question.task, []).append(correct)
    return {task: (fmean(values), len(values)) for task, values in by_task.items()}


def not_finite(asked: Sequence[Question], finite_N: Tensor) -> dict[str, tuple[float, int]]:
    """Task -> how many of its questions have a state that is not finite, and how many it has: no probe can be trained.

    Tasks of which all are finite have no figure, either.
    """
    counts: dict[str, tuple[float, int]] = {}
    for question, is_finite in zip(asked, finite_N.tolist(), strict=True):
        count, n = counts.get(question.task, (0.0, 0))
        counts[question.task] = count + (not is_finite), n + 1
    return {task: (count, n) for task, (count, n) in counts.items() if count}


@torch.inference_mode()
def last_states(target: Target, prompts: Sequence[str]) -> Tensor:
    """The states of each layer at each prompt's last token: float32 [N, L, D], on the CPU."""
    rows = encode_prompts(target.tokenizer, prompts)
    states: list[Tensor | None] = [None] * len(rows)

    def run(part: list[int]) -> Tensor:
        inputs = pad([rows[i] for i in part], 0, "right").to(target.model.device)
        ends_B = inputs.mask_BT.sum(dim=1) - 1
        with recorded_at(target, ends_B) as by_layer:
            target.model(
                input_ids=inputs.ids_BT, attention_mask=inputs.mask_BT.long(), use_cache=False, logits_to_keep=1
            )
        return torch.stack(by_layer, dim=1)

    for batch in by_length([len(row) for row in rows], target.tokens_per_batch):
        parts, _ = in_batches(run, batch, len(batch))
        for i, state_LD in zip(batch, torch.cat(parts), strict=True):
            states[i] = state_LD
    return torch.stack([state_LD for state_LD in states if state_LD is not None])


@contextmanager
def recorded_at(target: Target, positions_B: Tensor) -> Iterator[list[Tensor]]:
    """A list that a forward pass inside the block fills with each layer's states at a position of each row.

    An entry is float32 [B, D].
    """
    by_layer: list[Tensor] = []
    rows_B = torch.arange(len(positions_B), device=positions_B.device)

    def record(_module: Any, _args: Any, output: Tensor | tuple[Any, ...]) -> None:
        h_BTD = hidden_of(output)
        by_layer.append(h_BTD[rows_B, positions_B].float().cpu())

    with ExitStack() as stack:
        for layer in decoder_layers(target.model):
            stack.callback(layer.register_forward_hook(record).remove)
        yield by_layer
