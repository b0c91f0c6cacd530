"""What a run shows: a live bar in a terminal, plain lines elsewhere."""

import io
import re

import pytest
from rich.console import Console

from unlearn.tracking.terminal import training_progress
from unlearn.training.loop import Record


def record(step: int) -> Record:
    return Record(step, "bio", 0.5, 0.25, 1.0, 2.0, {}, 100, 1.0, 12_345.0, 678.9)


@pytest.fixture
def shown(monkeypatch):
    """Train 40 steps on a terminal or on none; what was written."""

    def train(terminal: bool, first: int = 0) -> str:
        out = io.StringIO()
        console = Console(file=out, force_terminal=terminal, width=200)
        for module in ("unlearn.screen", "unlearn.tracking.terminal"):
            monkeypatch.setattr(f"{module}.console", console)
        with training_progress(40) as show:
            for step in range(first, 40):
                show(record(step))
        return out.getvalue()

    return train


def test_a_bar_that_moves_in_a_terminal(shown):
    text = shown(terminal=True)
    assert "\x1b[" in text
    assert "40/40" in text
    assert "forget 0.5  retain 0.25  12,345 tokens/s  679 MB" in text


def test_plain_lines_elsewhere(shown):
    lines = shown(terminal=False).splitlines()
    assert len(lines) == 10
    assert not any("\x1b" in line for line in lines)
    assert lines[0].startswith("training 4/40")
    assert re.search(r"  0:00:\d\d left  ", lines[0])
    assert lines[-1].startswith("training 40/40")
    assert lines[-1].endswith("forget 0.5  retain 0.25  12,345 tokens/s  679 MB")


def test_a_run_that_goes_on_begins_where_it_is(shown):
    lines = shown(terminal=False, first=30).splitlines()
    assert [line.split()[1] for line in lines] == ["31/40", "32/40", "36/40", "40/40"]
