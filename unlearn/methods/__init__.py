"""Unlearning methods, one file each, RNA, the losses, and the protocol of an objective that training minimises.

A method on representations is a class like `RMU`; one on logits implements `objective.Objective`. Not here: models,
optimizers, configuration objects, run folders, W&B. `conf/method/*.yaml` names the classes that are imported below.
"""

from unlearn.methods.adaptive_rmu import AdaptiveRMU
from unlearn.methods.rmu import RMU
from unlearn.methods.rsv import RSV

__all__ = ["RMU", "RSV", "AdaptiveRMU"]
