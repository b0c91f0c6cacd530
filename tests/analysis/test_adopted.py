"""Adopted checkpoints in the report, the claims and the data frames: what nobody gave is shown as unknown."""

import json

import pandas as pd
import pytest

from tests.analysis.made_up import made_up_run
from tests.analysis.test_attacks import PLAIN, attacked
from unlearn import results
from unlearn.analysis.collect import collect
from unlearn.analysis.report.attacks import figure as attacks_figure
from unlearn.analysis.report.attacks import levels as attack_levels
from unlearn.analysis.report.charts import SCREEN
from unlearn.analysis.report.material import gather
from unlearn.analysis.report.page import summary
from unlearn.analysis.report.tables import TABLES
from unlearn.analysis.report.trade_off import figure as trade_off
from unlearn.cli.main import main


def adopted_run(folder, checkpoint, method="unknown", **identity):
    """A run as `unlearn adopt` leaves it."""
    made_up_run(folder, method=method)
    record = json.loads((folder / "run.json").read_text())
    own = record["identity"] | {"method": {"name": method}, "rna": {}, "train": {}, **identity}
    own["adopted"] = {"checkpoint": checkpoint, "base": "b"}
    own["model"].pop("layer")
    if "seed" not in identity:
        own.pop("seed")
    record |= {"identity": own, "trained": {}}
    record["inputs"]["data"] = {}
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "train.jsonl").unlink()
    return folder


@pytest.fixture
def mixed(tmp_path):
    """Two seeds of a method with RNA and without, two checkpoints of which nothing is known, one that is known."""
    folders = [made_up_run(tmp_path / f"{nu}-{seed}", nu=nu, seed=seed) for nu in (0.0, 0.1) for seed in (0, 1)]
    folders += [adopted_run(tmp_path / checkpoint, checkpoint) for checkpoint in ("first", "second")]
    folders += [adopted_run(tmp_path / "known", "third", "rmu", rna={"nu": 0.0}, seed=0)]
    for folder in folders:
        attacked(folder, rounding={"4": PLAIN + 0.1})
    return tmp_path


def test_settings_that_nobody_gave_are_empty_and_no_seed_is_missing(mixed):
    m = gather(collect([mixed]))
    table = TABLES["settings"](m).data
    rows = table[table["method"] == "unknown, adopted"]
    assert len(rows) == 2
    assert rows["adopted.checkpoint"].tolist() == ["first", "second"]
    assert rows["ν"].isna().all()
    assert not table.get("missing", pd.Series()).notna().any()
    assert set(table["method"].str.removesuffix(" *")) == {"Base", "RMU", "unknown, adopted", "RMU, adopted"}
    runs = TABLES["runs"](m).data
    assert runs[runs["method"] == "unknown, adopted"]["seed"].isna().all()


def test_no_unknown_setting_stands_for_a_method_and_none_is_said_to_be_without_rna(mixed):
    m = gather(collect([mixed]))
    assert {c.method for c in m.chosen} == {"RMU", "RMU, adopted"}
    for made in (trade_off(m), attacks_figure(m), attack_levels(m)):
        kinds = made.data.groupby("method")["rna"].unique().to_dict()
        assert list(kinds["unknown, adopted"]) == ["RNA unknown"]
        assert list(kinds["RMU, adopted"]) == ["without"]
        assert '"RNA unknown"' in made.chart(SCREEN).to_json()
        assert "nan" not in made.data.to_csv(index=False)
    assert dict(summary(m))["seeds"] == "0, 1"
    assert not m.problems


def test_without_unknown_settings_no_legend_speaks_of_them(tmp_path):
    made_up_run(tmp_path / "a")
    assert "RNA unknown" not in trade_off(gather(collect([tmp_path]))).chart(SCREEN).to_json()


def test_claims_are_of_runs_whose_settings_are_known(mixed, tmp_path, capsys):
    main(["claims", str(mixed), "-o", str(tmp_path / "claims.md")])
    assert "Left out: 3 adopted checkpoints" in capsys.readouterr().err
    assert "from 4 runs" in (tmp_path / "claims.md").read_text()
    with pytest.raises(SystemExit, match="all runs here are adopted checkpoints"):
        main(["claims", str(mixed / "first")])


def test_data_frames_have_no_value_for_what_is_not_known(mixed):
    rows = results(mixed).scores.query("run == 'first'")
    assert rows["nu"].isna().all()
    assert rows["seed"].isna().all()
    assert set(results(mixed / "first").scores["method"]) == {"unknown"}
