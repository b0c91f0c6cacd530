"""Linear probes: can the right answer be read from the states of a layer, though the model does not say it?

As in Li et al. (2024, section 5.3): at a question's last token, a linear classifier of the right option's letter. It is
trained on one half of the questions of a role and measured on the other. N questions, L layers, D hidden size.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from unlearn.attacks.attack import Measured, Metrics, OnQuestions, Victim
from unlearn.attacks.lens import LogitLens
from unlearn.data.batches import pad
from unlearn.evaluate.chat import encode_prompts
from unlearn.evaluate.maxlogit import by_length
from unlearn.models.architectures import decoder_layers
from unlearn.models.memory import in_batches
from unlearn.screen import say

BLOCK = 4  # questions in a row that go to one half: a fact may be asked about several times in a row
PENALTIES = tuple(10.0**power for power in range(-1, 6))  # of which leave-one-out chooses


@dataclass(frozen=True)
class Question:
    """A question's task, number, prompt and right answer."""

    task: str
    number: int
    prompt: str
    answer: str

    @property
    def measured(self) -> bool:
        """Whether the probe is measured on it, and not trained."""
        return self.number // BLOCK % 2 == 1


@dataclass(frozen=True)
class Probe(OnQuestions):
    """Accuracy of a probe at each layer, of each role's questions as they are (query "default")."""

    levels: Sequence[int] | None = None  # numbers of layers, from 0; None: all
    level = "layer {:g}"

    def __post_init__(self) -> None:
        LogitLens(self.levels)

    def levels_of(self, victim: Victim) -> Sequence[int]:
        """Layers, as of the lens."""
        return LogitLens(self.levels).levels_of(victim)

    def members(self, victim: Victim) -> dict[str, list[str]]:
        """Role -> the tasks of which a question is measured, over which a role's figure is the mean.

        Of many small tasks (300 questions of MMLU's 57 subjects) some have none: all of theirs are trained on.
        """
        asked = halved(victim)
        return {role: list(dict.fromkeys(q.task for q in found if q.measured)) for role, found in asked.items()}

    def measure(self, victim: Victim, missing: Collection[float]) -> Measured:
        """Train a probe for each role and missing layer."""
        say(f"{victim.label} model, linear probes at {len(missing)} layers")
        asked = halved(victim)
        states = {role: last_states(victim, [q.prompt for q in found]) for role, found in asked.items()}
        for level in self.levels_of(victim):
            if level in missing:
                figures: Metrics = {}
                for role, found in asked.items():
                    figures |= probe(found, states[role][:, int(level)].numpy(), victim.label)
                yield level, figures


def halved(victim: Victim) -> dict[str, list[Question]]:
    """The questions of those roles that have both halves."""
    asked = {role: questions(victim, leaves) for role, leaves in victim.suite.members.items()}
    return {role: found for role, found in asked.items() if len({q.measured for q in found}) == 2}


def questions(victim: Victim, leaves: Sequence[str]) -> list[Question]:
    """The questions of these tasks, in the form in which the model is asked them."""
    found = []
    tasks = victim.suite.tasks["default"]["tasks"]
    for leaf in (leaf for leaf in leaves if leaf in tasks):
        answers = {
            victim.suite.number(leaf, request): tasks[leaf].doc_to_target(request.doc)
            for request in tasks[leaf].instances
        }
        prompts = victim.suite.prompts("default", leaf)
        found += [Question(leaf, number, prompt, str(answers[number])) for number, prompt in prompts.items()]
    return found


def probe(asked: Sequence[Question], states_ND: np.ndarray, label: str) -> dict[str, float]:
    """Accuracy of each task's measured questions: {"LABEL/TASK/default/acc": value}."""
    measured = np.array([q.measured for q in asked])
    answers = np.array([q.answer for q in asked])
    if len(set(answers[~measured])) < 2:  # nothing to tell apart
        predicted = np.full(measured.sum(), answers[~measured][0])
    else:
        classifier = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=PENALTIES))
        predicted = classifier.fit(states_ND[~measured], answers[~measured]).predict(states_ND[measured])
    tasks = np.array([q.task for q in asked])[measured]
    right = predicted == answers[measured]
    return {f"{label}/{task}/default/acc": float(right[tasks == task].mean()) for task in dict.fromkeys(tasks)}


@torch.inference_mode()
def last_states(victim: Victim, prompts: Sequence[str]) -> Tensor:
    """The states of each layer at each prompt's last token: float32 [N, L, D], on the CPU."""
    rows = encode_prompts(victim.tokenizer, prompts)
    states: list[Tensor | None] = [None] * len(rows)

    def run(part: list[int]) -> Tensor:
        inputs = pad([rows[i] for i in part], 0, "right").to(victim.model.device)
        ends_B = inputs.mask_BT.sum(dim=1) - 1
        with last_of_each_layer(victim, ends_B) as found:
            victim.model(
                input_ids=inputs.ids_BT, attention_mask=inputs.mask_BT.long(), use_cache=False, logits_to_keep=1
            )
        return torch.stack(found, dim=1)

    for batch in by_length([len(row) for row in rows], 0, victim.tokens_per_batch):
        parts, _ = in_batches(run, batch, len(batch))
        for i, state_LD in zip(batch, torch.cat(parts), strict=True):
            states[i] = state_LD
    return torch.stack([state_LD for state_LD in states if state_LD is not None])


@contextmanager
def last_of_each_layer(victim: Victim, ends_B: Tensor) -> Iterator[list[Tensor]]:
    """A list that a forward pass inside the block fills with each layer's states at these places: float32 [B, D]."""
    found: list[Tensor] = []
    rows_B = torch.arange(len(ends_B), device=ends_B.device)

    def keep(_module: Any, _args: Any, output: Tensor | tuple[Any, ...]) -> None:
        h_BTD = output[0] if isinstance(output, tuple) else output
        found.append(h_BTD[rows_B, ends_B].float().cpu())

    with ExitStack() as stack:
        for layer in decoder_layers(victim.model):
            stack.callback(layer.register_forward_hook(keep).remove)
        yield found
