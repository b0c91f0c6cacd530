"""Unlearning methods, one file each, RNA, the losses, and the protocol of an objective that training minimises.

Two families: `misdirection.py` (RMU, Adaptive RMU, RSV: on representations) and `likelihood.py` (NPO, SimNPO, DPO,
gradient difference: on logits). Not here: models, optimizers, configuration objects, run folders, W&B.
`conf/method/*.yaml` names the classes that are imported below. Their files import torch only inside functions, so that
the arguments on a command line are checked at once.
"""

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

METHODS = ("DPO", "NPO", "RMU", "RSV", "AdaptiveRMU", "GradDiff", "SimNPO")

__all__ = [
    "DPO",
    "METHODS",
    "NPO",
    "RMU",
    "RNA",
    "RSV",
    "AdaptiveRMU",
    "GradDiff",
    "LikelihoodMethod",
    "MisdirectionMethod",
    "SimNPO",
]
