"""What the paper adds to a report: its phases of nu, and its published numbers."""

import json

import pandas as pd
import pytest

from tests.analysis.made_up import made_up_run
from unlearn.analysis.collect import collect
from unlearn.analysis.report.charts import SCREEN
from unlearn.analysis.report.material import gather
from unlearn.cli.main import main
from unlearn.paper import published
from unlearn.paper.additions import figure_3, published_table_1
from unlearn.paper.phases import phases


def _curve(retain, forget, nus=(0.01, 0.1, 0.2, 0.5)):
    rows = [
        {"x": nu, "role": role, "query": "perturbed", "mean": value}
        for role, values in (("retain", retain), ("forget", forget))
        for nu, value in zip(nus, values, strict=True)
    ]
    return pd.DataFrame(rows)


def test_phases_of_a_curve_that_rises_declines_and_rises_again():
    found = phases(_curve([50, 60, 45, 55], [28, 28, 27, 60]), 40).set_index("phase")
    assert found.loc["I"].tolist() == pytest.approx([0.01 / 1.15, 0.1])
    assert found.loc["II"].tolist() == [0.1, 0.2]
    assert found.loc["III"].tolist() == [0.2, 0.5]
    higher = phases(_curve([50, 60, 45, 70], [28, 28, 27, 60]), 40).set_index("phase")
    assert higher.equals(found)  # the third phase may end above the first


def test_phases_that_are_not_there_are_not_shown():
    rising = phases(_curve([50, 55, 60, 65], [28, 28, 28, 28]), 60.0)
    assert rising.to_dict("list") == {"phase": ["I"], "begin": [0.01], "end": [0.5]}
    # retained knowledge alone rises again: that is not the paper's third phase
    assert "III" not in set(phases(_curve([50, 60, 45, 55], [28, 28, 28, 27]), 60.0)["phase"])
    assert phases(_curve([50, 60], [28, 28], nus=(0.01, 0.1)), 60.0).empty


def test_published_numbers_agree_with_each_other():
    """The gains printed in Table 1 in parentheses, of Adaptive RMU and RSV under perturbation."""
    rows = published.table_1().set_index(["method", "rna", "task", "query"])["acc"]
    for (method, task), gain in {
        ("Adaptive RMU", "MMLU C. Bio."): 29.2,
        ("Adaptive RMU", "MMLU C. Sec."): 4.0,
        ("RSV", "MMLU C. Bio."): 17.4,
        ("RSV", "MMLU C. Sec."): 8.0,
        ("RMU", "MMLU C. Bio."): -5.6,
    }.items():
        difference = rows[method, True, task, "perturbed"] - rows[method, False, task, "perturbed"]
        assert difference == pytest.approx(gain)


def test_the_report_has_them_where_they_are_asked_for(tmp_path, capsys):
    grid = tmp_path / "runs"
    for nu in (0.0, 0.05, 0.1, 0.3):
        made_up_run(grid / f"{nu}", nu=nu)
    drawn = json.dumps(figure_3(gather(collect([grid]))).chart(SCREEN).to_dict())
    assert '"phase": "II"' in drawn
    assert "best \\u03bd of the paper" in drawn
    main(["report", str(grid), "--paper", "--format", "md", "--table", "published"])
    assert "| published" in capsys.readouterr().out
    main(["report", str(grid), "--paper", "-o", str(tmp_path / "r.html")])
    assert "Table 1, as published" in (tmp_path / "r.html").read_text()


def test_the_published_table_is_in_the_papers_form():
    rows = published_table_1(None).data.set_index(["method", "RNA", "query"])
    assert rows.loc[("RMU", "w/ RNA", "perturbed"), "MMLU C. Bio. ↑"] == "44.4 ± 4.1 (-5.6)"
