"""The one exception for mistakes of the user, and the nearest valid name for a mistyped one."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

INTERRUPTED = 130  # the exit status after Ctrl-C
GOES_ON = "Interrupted. Run the same command again to resume."


class UserError(ValueError):
    """A mistake of the user: what was given, where, and what is allowed. It is printed without a traceback."""


def describe(error: BaseException) -> str:
    """The error as a sentence: the user's mistakes speak for themselves, others are named by their type."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def nearest(name: str, names: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the valid name closest to `name`, or an empty string."""
    close = get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""
