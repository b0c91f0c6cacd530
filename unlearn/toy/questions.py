"""Loads a question set of the embedded world for lm-eval's tasks in `tasks/`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets

FOLDER = Path(__file__).parent / "data" / "questions"


def load(name: str, **_metadata: Any) -> dict[str, datasets.Dataset]:
    """{"test": questions} with the columns of cais/mmlu: question, subject, choices, answer."""
    lines = (FOLDER / f"{name}.jsonl").read_text().splitlines()
    return {"test": datasets.Dataset.from_list([json.loads(line) for line in lines])}
