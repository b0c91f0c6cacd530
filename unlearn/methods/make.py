"""A method from its configuration: the class that `_target_` names, with its arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydra.utils import get_class, instantiate

from unlearn.methods.objective import Method

NOT_ARGUMENTS = ("name", "preferred")  # `preferred` is read with the other texts


def make_method(config: Mapping[str, Any]) -> Method:
    """The method of a configuration's `method` group."""
    return instantiate({key: value for key, value in config.items() if key not in NOT_ARGUMENTS})


def needs_logits(config: Mapping[str, Any]) -> bool:
    """Whether training with this method needs the whole model."""
    return get_class(config["_target_"]).needs_logits
