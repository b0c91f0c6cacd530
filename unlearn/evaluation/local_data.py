"""MMLU and WMDP from a folder (`eval.local_dir`) instead of the hub.

    test/SUBJECT_test.csv, dev/SUBJECT_dev.csv     MMLU, columns question, choice0 .. choice3, answer
    SUBJECT/test*.parquet, SUBJECT/dev*.parquet    MMLU as on the hub, columns question, choices, answer
    wmdp-bio.jsonl, wmdp-cyber.jsonl, or .parquet  WMDP, columns question, choices, answer

They may also lie in folders `mmlu` and `wmdp` inside that folder.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any
from unittest.mock import patch

import datasets

from unlearn.data.formats import read_text
from unlearn.errors import UserError

KEY = "eval.local_dir"
SOURCES = {"cais/mmlu": "mmlu", "cais/wmdp": "wmdp"}  # data set on the hub -> folder inside local_dir
ANSWERS = {name: i for i, letter in enumerate("ABCD") for name in (letter, letter.lower(), str(i))}


@contextmanager
def local_data(folder: str | None, examples: bool = False) -> Iterator[None]:
    """Inside the block, lm-eval's tasks read MMLU and WMDP from `folder`, and other data as usual.

    Raises UserError if the folder does not exist or lacks a subject, or, with `examples`, its few-shot examples.
    """
    if folder is None:
        yield
        return
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"{KEY}={folder}: there is no such folder.")
    usual = datasets.load_dataset

    def load(path: str, name: str | None = None, **kwargs: Any) -> Any:
        if path not in SOURCES or name is None:
            return usual(path, name, **kwargs)
        inside = root / SOURCES[path]
        return load_local(inside if inside.is_dir() else root, name, examples)

    with patch("lm_eval.api.task.datasets.load_dataset", load):
        yield


def load_local(root: Path, name: str, examples: bool = False) -> datasets.DatasetDict:
    """The splits of an MMLU subject or of a WMDP set. Raises UserError, with file and line, for bad ones."""
    splits = {}
    for split in ("test", "dev"):
        file = next((f for f in _candidates(root, name, split) if f.is_file()), None)
        if file is not None:
            splits[split] = datasets.Dataset.from_list(list(_questions(file)))
    for split in ("test", "dev") if examples else ("test",):
        if split not in splits:
            tried = ", ".join(str(f) for f in _candidates(root, name, split))
            raise UserError(f"{KEY}: no {split} questions of {name!r}. Looked for {tried}.")
    # lm-eval needs a split for few-shot examples even if it takes none.
    splits.setdefault("dev", splits["test"].select([]))
    return datasets.DatasetDict(splits)


def _candidates(root: Path, name: str, split: str) -> list[Path]:
    """The files that may hold a split of a subject."""
    whole = [root / f"{name}.jsonl", root / f"{name}.parquet"] if split == "test" else []
    hub = sorted((root / name).glob(f"{split}*.parquet"))
    return [*hub, root / split / f"{name}_{split}.csv", root / split / f"{name}_{split}.parquet", *whole]


def _questions(file: Path) -> Iterator[dict[str, Any]]:
    """Checked questions: {question, choices (four), answer (0 .. 3)}."""
    readers = {".csv": _csv_rows, ".jsonl": _jsonl_rows, ".parquet": _parquet_rows}
    empty = True
    for place, row in readers[file.suffix](file):
        empty = False
        yield _checked(row, place)
    if empty:
        raise UserError(f"{KEY}: {file} holds no question.")


def _csv_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(read_text(file, KEY), newline=""))
    wanted = {"question", "answer", *(f"choice{i}" for i in range(4))}
    missing = wanted - set(reader.fieldnames or [])
    if missing:
        raise UserError(f"{KEY}: {file}:1: there is no column {', '.join(sorted(missing))}.")
    for row in reader:
        yield f"{file}:{reader.line_num}", {**row, "choices": [row[f"choice{i}"] for i in range(4)]}


def _jsonl_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(io.StringIO(read_text(file, KEY)), start=1):  # lines end with "\n" alone
        place = f"{file}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{KEY}: {place}: not valid JSON ({error.msg}).") from None
        if not isinstance(row, dict):
            raise UserError(f"{KEY}: {place}: not an object with question, choices and answer.")
        yield place, row


def _parquet_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    # A name would be taken for a pattern.
    for number, row in enumerate(datasets.Dataset.from_parquet(escape(str(file))), start=1):
        yield f"{file} row {number}", row


def _checked(row: dict[str, Any], place: str) -> dict[str, Any]:
    question, choices, answer = (row.get(column) for column in ("question", "choices", "answer"))
    if not isinstance(question, str) or not question.strip():
        raise UserError(f"{KEY}: {place}: there is no question.")
    if not isinstance(choices, list) or len(choices) != 4 or not all(isinstance(c, str) for c in choices):
        raise UserError(f"{KEY}: {place}: a question has four options, this one has {choices!r}.")
    if isinstance(answer, str):
        answer = ANSWERS.get(answer.strip())
    if not isinstance(answer, int) or not 0 <= answer <= 3:
        raise UserError(f"{KEY}: {place}: answer={row.get('answer')!r} is not allowed: it must be 0 to 3 or A to D.")
    return {"question": question, "choices": choices, "answer": answer}
