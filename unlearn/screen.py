"""Messages to the terminal."""

from __future__ import annotations

import sys

from rich.console import Console

WIDE = 200  # columns where there is no terminal
console = Console(stderr=True, width=None if sys.stderr.isatty() else WIDE)


def say(message: str) -> None:
    """A line of plain text."""
    console.print(message, markup=False, highlight=False, soft_wrap=True)
