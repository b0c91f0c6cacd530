"""Messages to the terminal. What files and names hold reaches it as text, never as commands to it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from io import TextIOWrapper

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

WIDE = 200  # columns where there is no terminal
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and line feed


def plain(text: str) -> str:
    """A text whose control characters, such as those that begin ANSI codes, are written out: \\x1b."""
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def one_line(text: str) -> str:
    """A text on one line, without control characters."""
    return plain(" ".join(text.split()))


def accept_every_letter() -> None:
    """Let standard output replace letters that its encoding lacks by question marks, where it would raise an error."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


class PlainConsole(Console):
    """A console that sends no other control characters than its own."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments, with plain texts."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(plain(segment.text), segment.style)


console = PlainConsole(stderr=True, width=None if sys.stderr.isatty() else WIDE)


def say(message: str) -> None:
    """A line of plain text."""
    console.print(message, markup=False, highlight=False, soft_wrap=True)
