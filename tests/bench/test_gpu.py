"""`python -m bench.gpu`, small, on a CPU."""

import json

import pytest

from bench.gpu import training
from bench.gpu.__main__ import main

SMALL = ["--width", "0.03125", "--batch", "1", "--lengths", "32", "--questions", "2", "--steps", "4"]


def rows_of(file):
    return json.loads(file.read_text())["rows"]


@pytest.mark.slow
def test_every_section_leaves_figures_and_all_checks_pass(tmp_path):
    file = tmp_path / "gpu.json"
    with pytest.raises(SystemExit) as end:
        main([*SMALL, "-o", str(file)])
    assert end.value.code == 0
    rows = rows_of(file)
    assert {row["section"] for row in rows} == {"a", "b", "c", "p"}
    assert all(row["passed"] for row in rows if "passed" in row)
    assert sum(row["case"].startswith(("ours", "published")) and row["seconds"] > 0 for row in rows) >= 9
    assert [row["cut"] for row in rows if "cut" in row] == ["exact"] * 10


def test_a_case_that_fails_is_a_row_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    def broken(*_):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(training._Bench, "_published", broken)
    file = tmp_path / "gpu.json"
    with pytest.raises(SystemExit) as end:
        main([*SMALL, "--sections", "b", "-o", str(file)])
    assert end.value.code == 1
    rows = rows_of(file)
    assert [row["error"] for row in rows if "published" in row["case"]] == ["RuntimeError: CUDA out of memory"] * 2
    ours = [row for row in rows if row["case"].startswith("ours")]
    assert len(ours) == 7
    assert all(row["share_of_gemm"] > 0 for row in ours)
    assert capsys.readouterr().out.count("\n") == len(rows) + 1  # each figure is printed


def test_no_section_begins_after_the_time_is_over(tmp_path):
    file = tmp_path / "gpu.json"
    with pytest.raises(SystemExit):
        main([*SMALL, "--seconds", "-1", "-o", str(file)])
    assert [row["case"] for row in rows_of(file)] == ["skipped"] * 4
