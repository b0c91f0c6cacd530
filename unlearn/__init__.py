"""Unlearning of language models by representation misdirection or on likelihoods, with Random Noise Augmentation.

The public names below are what a user's own code imports (docs/api.md); the command line is built on them. They are
imported when they are used, so that `import unlearn` takes no time.

`experiment.py` is the whole run on one page. The rooms, from top to bottom: cli, paper, analysis, sweeps, experiment,
attacks, runs, tracking, evaluation, config, training, methods, models, data, records, toy, real, storage, statistics,
arguments, screen, errors. A room imports only from rooms below it: `lint-imports` checks that (pyproject.toml).
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unlearn.analysis.results import results
    from unlearn.data.corpora import Topic
    from unlearn.errors import UserError
    from unlearn.evaluation.in_memory import evaluate
    from unlearn.methods.adaptive_rmu import AdaptiveRMU
    from unlearn.methods.dpo import DPO
    from unlearn.methods.grad_diff import GradDiff
    from unlearn.methods.likelihood import LikelihoodMethod
    from unlearn.methods.misdirection import MisdirectionMethod
    from unlearn.methods.npo import NPO
    from unlearn.methods.rmu import RMU
    from unlearn.methods.rna import RNA
    from unlearn.methods.rsv import RSV
    from unlearn.methods.simnpo import SimNPO
    from unlearn.models.cutting import CutModel
    from unlearn.runs.adoption import adopt
    from unlearn.training.optimizer import Optimizer
    from unlearn.training.train import train
    from unlearn.training.variant import Variant

__all__ = [
    "DPO",
    "NPO",
    "RMU",
    "RNA",
    "RSV",
    "AdaptiveRMU",
    "CutModel",
    "GradDiff",
    "LikelihoodMethod",
    "MisdirectionMethod",
    "Optimizer",
    "SimNPO",
    "Topic",
    "UserError",
    "Variant",
    "adopt",
    "evaluate",
    "results",
    "train",
]

__version__ = "0.1.0"

# Before torch is imported: idle OpenMP threads sleep. By default they spin, and two processes of two threads on two
# cores slow each other down to a third (docs/log/speed.md). A process that is alone loses some hundredths by it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_MODULES = {
    "CutModel": "unlearn.models.cutting",
    "Optimizer": "unlearn.training.optimizer",
    "Topic": "unlearn.data.corpora",
    "UserError": "unlearn.errors",
    "Variant": "unlearn.training.variant",
    "adopt": "unlearn.runs.adoption",
    "evaluate": "unlearn.evaluation.in_memory",
    "results": "unlearn.analysis.results",
    "train": "unlearn.training.train",
}  # of the public names; methods are all in one module


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES.get(name, "unlearn.methods")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
