"""What a run shows: a live bar in a terminal, plain lines elsewhere."""

import io
import json
import re
from pathlib import Path

import pytest
from rich.table import Table

from tests.analysis.made_up import made_up_run
from unlearn.cli.main import main
from unlearn.records.scores import Score
from unlearn.screen import PlainConsole, plain
from unlearn.tracking.terminal import show_result, show_result_line, training_progress
from unlearn.training.loop import Record


def record(step: int) -> Record:
    return Record(step, "bio", 0.5, 0.25, 1.0, 2.0, {}, 100, 1.0, 12_345.0, 678.9)


@pytest.fixture
def shown(monkeypatch):
    """Train 40 steps on a terminal or on none; what was written."""

    def train(terminal: bool, first: int = 0) -> str:
        out = io.StringIO()
        console = PlainConsole(file=out, force_terminal=terminal, width=200)
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


def test_tasks_without_accuracy_have_a_table_for_each_of_their_metrics(monkeypatch):
    out = io.StringIO()
    console = PlainConsole(file=out, width=200)
    for module in ("unlearn.screen", "unlearn.tracking.terminal"):
        monkeypatch.setattr(f"{module}.console", console)
    scores = []
    for model in ("base", "unlearned"):
        scores.append(Score(model, "retain", "made_up", None, "default", "exact_match", 0.25, stderr=0.1))
        scores.append(Score(model, "retain", "mmlu", None, "default", "acc", 0.5))
    scores.append(Score("unlearned", "retain", "mmlu", None, "default", "acc_norm", 0.7))
    scores.append(Score("unlearned", "retain", "made_up", None, "default", "exact_match", 0.0, against="base", p=1.0))
    show_result(scores, Path("RUN"), None)
    tables = [line.strip() for line in out.getvalue().splitlines() if "standard error" in line]
    assert tables == ["Accuracy in % (± standard error), RUN", "exact_match (± standard error), RUN"]
    assert "0.250 ± 0.100   0.250 ± 0.100       +0.000" in out.getvalue()


def test_a_count_stands_where_the_score_would(monkeypatch):
    out = io.StringIO()
    console = PlainConsole(file=out, width=200)
    for module in ("unlearn.screen", "unlearn.tracking.terminal"):
        monkeypatch.setattr(f"{module}.console", console)

    def count(task, model="unlearned", role="retain"):
        return Score(model, role, task, None, "default", "not_finite", 3.0, n=60)

    scores = [
        Score("base", "retain", "mmlu", None, "default", "acc", 0.5),
        Score("base", "retain", "made_up", None, "default", "exact_match", 0.25),
        *(count(task) for task in ("mmlu", "made_up")),
        *(count("retain_text_wiki", model, "retain_text") for model in ("base", "unlearned")),
        *(count("arc", model) for model in ("base", "unlearned")),
    ]
    show_result(scores, Path("RUN"), None)
    lines = [re.sub(" {2,}", "|", line.strip()) for line in out.getvalue().splitlines()]
    assert "retain|mmlu|default|50.0|3 of 60 not finite|-" in lines
    assert "retain|made_up|default|0.250|3 of 60 not finite|-" in lines
    assert "retain_text|retain_text_wiki|default|3 of 60 not finite|3 of 60 not finite|-" in lines
    assert "retain|arc|default|3 of 60 not finite|3 of 60 not finite|-" in lines
    assert [line.partition(" (±")[0] for line in lines if "(±" in line] == [
        "Accuracy in %", "Texts, nats per token", "exact_match",
    ]  # fmt: skip
    out.truncate(0)
    show_result_line(scores, Path("RUN"), None)
    assert "18 answers are not finite" in out.getvalue()


def test_what_files_hold_reaches_the_terminal_as_text():
    out = io.StringIO()
    console = PlainConsole(file=out, force_terminal=True, width=60)
    table = Table("name")
    table.add_row("\x1b[31mred\x1b[0m \x9b2J \x07")
    console.print("title \x1b]0;mine\x07", markup=False)
    console.print(table)
    written = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue().replace("\x1b[0m", ""))  # rich's own styles
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", written)
    assert "\\x1b]0;mine" in written
    assert "\\x1b[31mred" in written
    assert plain("a\tb\nc é") == "a\tb\nc é"


def test_a_foreign_runs_error_is_shown_as_text(tmp_path, capsys):
    made_up_run(tmp_path / "run", status="failed")
    record = json.loads((tmp_path / "run/run.json").read_text())
    (tmp_path / "run/run.json").write_text(json.dumps(record | {"error": "\x1b]0;mine\x07 \x1b[2J"}))
    made_up_run(tmp_path / "other")
    for command in (
        ["report", str(tmp_path), "--format", "md"],
        ["report", str(tmp_path), "--format", "md", "--table", "unusable"],
    ):
        main(command)
    written = capsys.readouterr()
    assert "\x1b" not in written.out + written.err
    assert "\\x1b[2J" in written.err
    assert "\\x1b[2J" in written.out
