"""Evaluation: lm-eval tasks, perturbed queries, the scorer, MaxLogit, n-grams, statistics.

A new measure goes here. Not here: training, run folders, W&B, and figures of many runs (analysis).
"""

import sys
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    """`unlearn.evaluate` is the name of this room and of the public function: whoever imports the room can call it."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from unlearn.evaluate.in_memory import evaluate

        return evaluate(*args, **kwargs)


sys.modules[__name__].__class__ = _Room
