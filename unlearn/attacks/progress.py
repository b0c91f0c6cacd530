"""How far the attacks on a run are, on the screen."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from unlearn.screen import say


@dataclass
class Progress:
    """Counts measurements: each is one level of an attack on one model.

    Args:
        total: measurements to be made.
        clock: seconds.
    """

    total: int
    clock: Callable[[], float] = time.monotonic
    made: int = 0
    _started: float = field(init=False)

    def __post_init__(self) -> None:
        self._started = self.clock()

    def announce(self, what: str) -> None:
        """Name what is measured next, and how long all the rest will take if it goes on as before."""
        say(f"{what} ({self.made + 1} of {self.total}{self._remaining()})")

    def _remaining(self) -> str:
        if not self.made:
            return ""
        seconds = (self.clock() - self._started) / self.made * (self.total - self.made)
        return f", about {duration(seconds)} left"


def duration(seconds: float) -> str:
    """Seconds in words, to two figures or so."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    if seconds < 3600:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"
