"""Changed copies of lm-eval's multiple-choice tasks: other documents, and fair few-shot examples."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets
from lm_eval.api.samplers import ContextSampler
from lm_eval.api.task import Task

from unlearn.errors import UserError


def options(
    document: Mapping[str, Any], task: str, question: int, what: str, advice: str = ""
) -> tuple[list[str], int]:
    """The options of a multiple-choice question and the index of the right one, as in cais/mmlu and cais/wmdp.

    Raises UserError, saying that `what` needs them, for a document that has no such columns.
    """
    choices, answer = document.get("choices"), document.get("answer")
    if not isinstance(choices, list) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise UserError(
            f"task {task}, question {question}: {what} the columns `choices` (a list) and `answer` (an index); "
            f"it has {', '.join(document)}. {advice}".rstrip()
        )
    return choices, answer


def with_documents(task: Task, change: Callable[..., dict[str, Any]]) -> Task:
    """A copy of a task whose asked documents are changed by `change(document, task=, question=)`.

    Few-shot examples stay.
    """
    split = task.config.test_split or task.config.validation_split
    rows = task.eval_docs
    if isinstance(rows, datasets.Dataset):
        rows = rows.to_list()  # many times faster than a row at a time
    documents = [change(row, task=task.task_name, question=i) for i, row in enumerate(rows)]
    other = copy.copy(task)
    other._config = copy.copy(task._config)
    other._config.process_docs = None  # eval_docs has applied it
    other.dataset = {**task.dataset, split: documents}
    return other


class OtherQuestions(ContextSampler):
    """Few-shot examples from the asked questions themselves, without the question that is asked."""

    def sample(
        self, n: int, eval_doc: Mapping[str, Any] | None = None, df: Sequence[Any] | None = None, **_: Any
    ) -> Sequence[Any]:
        """Examples for one question."""
        asked = None if eval_doc is None else eval_doc.get("question")
        pool = [d for d in self.fewshot_docs() if d != eval_doc and (asked is None or d.get("question") != asked)]
        if len(pool) < n:
            raise UserError(f"eval.num_fewshot={n}, but only {len(pool)} other questions could be examples.")
        return self.rnd.sample(pool, n)


def with_fair_examples(task: Task) -> Task:
    """A task without a split for few-shot examples takes them from the questions that it asks, but not these.

    lm-eval would draw the question itself as well, with its answer.
    """
    has_split = task.fewshot_cfg.split is not None or task.has_training_docs() or task.has_validation_docs()
    if has_split or not task.config.test_split:
        return task
    other = copy.copy(task)
    # With that split, lm-eval names the question to the sampler.
    other.fewshot_cfg = dataclasses.replace(task.fewshot_cfg, split=task.config.test_split)
    other.sampler = OtherQuestions(list(task.eval_docs))
    return other
