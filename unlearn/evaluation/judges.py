"""What judges answers: the metrics, filters and own functions that turn what a model said into a task's figures."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from lm_eval.api.task import ConfigurableTask, Task

from unlearn.storage.hashing import code_hash, json_sha256

RULES = ("output_type", "process_results", "metric_list", "filter_list", "repeats")  # fields of a task


def judge_hash(task: Task) -> str:
    """A hash of a task's rules, the code of its own functions included.

    lm-eval's own metrics are known by their names: its version is in the keys of caches.
    """
    rules = {name: described(getattr(task.config, name, None)) for name in RULES}
    kind = None if type(task) is ConfigurableTask else described(type(task))
    several = [getattr(task, name, 0) for name in ("multiple_input", "multiple_target")]  # by its first document
    return json_sha256([kind, rules, several, sorted(task.aggregation())])


def right_answer(task: Task, document: Mapping[str, Any]) -> list[Any]:
    """All that a task's judge is told of a document: the right answer and the options; all of it, if code judges."""
    answer = [task.doc_to_target(document)]
    if getattr(task, "multiple_input", 0):  # then this is the number of the right one
        answer.append(task.doc_to_text(document))
    if getattr(task.config, "doc_to_choice", None) is not None:
        answer.append(task.doc_to_choice(document))
    return [*answer, document] if _has_own_code(task) else answer


def described(value: Any) -> Any:
    """A value of a task's configuration as JSON can hold it. A function becomes its code."""
    if isinstance(value, partial):
        return [described(value.func), described(value.args), described(value.keywords)]
    if callable(value):
        return _code(value)
    if is_dataclass(value):
        return described(asdict(value))  # type: ignore[arg-type]
    if isinstance(value, Mapping):
        return {str(key): described(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [described(part) for part in value]
    return value if value is None or isinstance(value, (str, bool, int, float)) else repr(value)


def _has_own_code(task: Task) -> bool:
    rules = [getattr(task.config, name, None) for name in RULES]
    return type(task) is not ConfigurableTask or any(_is_code(rule) for rule in rules)


def _is_code(value: Any) -> bool:
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return callable(value) or any(_is_code(part) for part in parts)


def _code(function: Any) -> list[str]:
    """The name of a function or class and its file, with what it imports. What has no file equals nothing."""
    try:
        file = Path(inspect.getsourcefile(inspect.unwrap(function)) or "")
    except TypeError:  # built in, or an object that can be called
        return ["unknown", uuid4().hex]
    return [function.__qualname__, code_hash(file) if file.is_file() else uuid4().hex]
