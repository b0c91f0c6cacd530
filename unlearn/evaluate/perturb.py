"""Perturbed queries: a random incorrect option becomes a forget-token (section 6.2)."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unlearn.errors import UserError


def read_forget_tokens(tokens: Sequence[str] | str) -> list[str]:
    """A literal list, or a file with one token a line. Raises UserError if the file is missing or empty."""
    if not isinstance(tokens, str):
        return list(tokens)
    file = Path(tokens)
    if not file.is_file():
        raise UserError(f"eval.forget_tokens={tokens}: there is no such file. Give a list or a file with one a line.")
    words = [line.strip() for line in file.read_text().splitlines() if line.strip()]
    if not words:
        raise UserError(f"eval.forget_tokens={tokens}: the file is empty.")
    return words


def perturb(
    document: Mapping[str, Any], tokens: Sequence[str], *, seed: int, task: str, question: int
) -> dict[str, Any]:
    """The question with one incorrect option replaced by one of `tokens`.

    Args:
        document: has `choices` (list of str) and `answer` (index of the right one), as in cais/mmlu and cais/wmdp.
        seed, task, question: the key of the random choice, so that every model sees the same question.

    Raises:
        UserError: the document has no such columns, or every token is its right answer.
    """
    choices, answer = document.get("choices"), document.get("answer")
    if not isinstance(choices, list) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise UserError(
            f"task {task}, question {question}: perturbed queries need the columns `choices` (a list) and `answer` "
            f"(an index); it has {', '.join(document)}. Set eval.queries=[default] to leave them out."
        )
    rng = random.Random(f"{seed}/{task}/{question}")
    wrong = rng.choice([i for i in range(len(choices)) if i != answer])
    usable = [token for token in tokens if token != choices[answer]]
    if not usable:
        raise UserError(
            f"task {task}, question {question}: every forget-token is its right answer {choices[answer]!r}."
        )
    return {**document, "choices": [*choices[:wrong], rng.choice(usable), *choices[wrong + 1 :]]}
