"""Checks of arguments: a UserError names the argument, what was given and what is allowed."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TypeGuard

from unlearn.errors import UserError, nearest

# What arguments may be, in Python as on the command line.
MASKS = ("padding", "padding_and_bos", "none")
OPTIMIZERS = ("adamw", "adamw_published")
PRECISIONS = ("master", "model")
SCHEDULES = ("constant", "linear")
SPAN = 3  # trained layers: l-2, l-1 and l (section 6.2)
NAME = re.compile(r"[^/\\\x00-\x1f\x7f]{1,200}")


def is_name(value: object) -> bool:
    """Whether a value can be the name of a file: no path, not "..", no control character."""
    return isinstance(value, str) and NAME.fullmatch(value) is not None and value not in (".", "..")


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value is an int or a float, and not a truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_number(name: str, value: object, *, above: float | None = None, at_least: float | None = None) -> None:
    """Raise UserError unless the value is a finite number in this range."""
    if not is_number(value):
        raise UserError(f"{name}={value!r} is not allowed: it must be a number.")
    in_range = (above is None or value > above) and (at_least is None or value >= at_least)
    if not (math.isfinite(value) and in_range):
        bound = f" > {above:g}" if above is not None else f" >= {at_least:g}" if at_least is not None else ""
        raise UserError(f"{name}={value:g} is not allowed: it must be a finite number{bound}.")


def check_integer(name: str, value: object, *, at_least: int) -> None:
    """Raise UserError unless the value is an integer of at least this size."""
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise UserError(f"{name}={value!r} is not allowed: it must be an integer >= {at_least}.")


def check_choice(name: str, value: object, allowed: Sequence[str]) -> None:
    """Raise UserError unless the value is one of these names."""
    if value not in allowed:
        near = nearest(str(value), allowed)
        raise UserError(f"{name}={value} is not allowed.{near} Allowed: {', '.join(allowed)}.")


def check_flag(name: str, value: object) -> None:
    """Raise UserError unless the value is True or False."""
    if not isinstance(value, bool):
        raise UserError(f"{name}={value} is not allowed: it must be true or false.")


def check_name(name: str, value: object) -> None:
    """Raise UserError unless the value can be the name of a file."""
    if not is_name(value):
        raise UserError(f"{name}={value!r} is not allowed: it must be a name, without slashes and control characters.")
