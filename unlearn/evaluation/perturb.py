"""Perturbed queries: random incorrect options become forget-tokens (section 6.2)."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from unlearn.errors import UserError
from unlearn.evaluation.forms import options

REPLACED = "unlearn_replaced_by"  # a column of perturbed documents: the words that options became


def perturb(
    document: Mapping[str, Any],
    tokens: Sequence[str],
    *,
    seed: int,
    task: str,
    question: int,
    count: int = 1,
    position: str = "random",
) -> dict[str, Any]:
    """The question with `count` incorrect options replaced by one each of `tokens`, which REPLACED lists.

    Args:
        document: has `choices` (list of str) and `answer` (index of the right one), as in cais/mmlu and cais/wmdp.
        seed, task, question: the key of the random choices, so that every model sees the same question.
        count: how many; not more than there are incorrect options.
        position: which incorrect options: "random", or the "first" or "last" ones.

    Raises:
        UserError: the document has no such columns, or every token is its right answer.
    """
    advice = "Set eval.queries=[default], or eval.asked_of, to leave them out."
    choices, answer = options(document, task, question, "perturbed queries need", advice)
    rng = random.Random(f"{seed}/{task}/{question}")
    wrong = [i for i in range(len(choices)) if i != answer]
    count = min(count, len(wrong))
    if position == "random":
        replaced = rng.sample(wrong, count)
    elif position == "first":
        replaced = wrong[:count]
    elif position == "last":
        replaced = wrong[len(wrong) - count :]
    else:
        raise ValueError(f"position={position!r} is not allowed: it must be random, first or last.")
    usable = [token for token in tokens if token != choices[answer]]
    if not usable:
        raise UserError(
            f"task {task}, question {question}: every forget-token is its right answer {choices[answer]!r}."
        )
    changed = list(choices)
    for place in replaced:
        changed[place] = rng.choice(usable)
    return {**document, "choices": changed, REPLACED: [changed[place] for place in replaced]}
