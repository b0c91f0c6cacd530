"""Loads a question set of the embedded world for lm-eval's tasks in `tasks/`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets

FOLDER = Path(__file__).parent / "data" / "questions"


PARTS = ("choosing", "judging")


def load(name: str, part: str | None = None, **_metadata: Any) -> dict[str, datasets.Dataset]:
    """{"test": questions} with the columns of cais/mmlu: question, subject, choices, answer.

    `part`: only the questions about every other fact, those that choose settings or those that judge them.
    """
    lines = (FOLDER / f"{name}.jsonl").read_text().splitlines()
    questions = [json.loads(line) for line in lines]
    if part is not None:
        facts = list(dict.fromkeys(question["question"] for question in questions))
        kept = set(facts[PARTS.index(part) :: len(PARTS)])
        questions = [question for question in questions if question["question"] in kept]
    return {"test": datasets.Dataset.from_list(questions)}
