"""The dashboard: its definition is what W&B's own package reads and sends, and names what a real run logs.

Saving it needs W&B's server: here only one that refuses, and one that is mocked.
"""

import json
import os
import subprocess
import sys
import threading
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
import yaml
from wandb_workspaces.workspaces import internal

from tests.conftest import ROOT
from tests.tracking.test_tracker import ASKED, records, rows, summary
from unlearn.cli.main import main
from unlearn.experiment import run
from unlearn.tracking import dashboard

HELD_OUT = ROOT / "unlearn/real/data/wikipedia-heldout.jsonl"
TEXTS = (
    f"+eval.texts.corpora.retain.wiki={HELD_OUT}", f"+eval.texts.corpora.forget.wiki={HELD_OUT}",
    "eval.texts.documents=2", "eval.every=1",
)  # fmt: skip
SECTIONS = {
    "Robustness": [wr.ScatterPlot] * 4,
    "Forgetting against robustness": [wr.ScatterPlot],
    "Held-out texts": [wr.ScatterPlot] * 2,
    "Course of training": [wr.LinePlot] * 3,
    "MaxLogit": [wr.ScatterPlot, wr.MediaBrowser],
    "All at once": [wr.ParallelCoordinatesPlot],
    "Training": [wr.LinePlot] * 10,
    "Tables": [wr.WeavePanelSummaryTable] * 3,
}


def command(*arguments, cwd, **env):
    """The command line, where nobody is logged in unless `env` says so."""
    kept = {k: v for k, v in os.environ.items() if k not in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_SERVICE")}
    home = {"HOME": str(cwd), "NETRC": str(cwd / "no-netrc"), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "unlearn", "dashboard", *arguments],
        cwd=cwd, env={**kept, **home, **env}, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def read(file):
    """The workspace of a file, as the package reads it from a server."""
    return ws.Workspace._from_model(internal.View.model_validate_json(file.read_text()))


def test_without_a_login_it_is_a_file_that_the_package_reads(tmp_path):
    done = command(cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.count("\n") == 1
    assert "outputs/dashboard.json" in done.stderr
    found = read(tmp_path / "outputs/dashboard.json")
    assert {s.name: [type(p) for p in s.panels] for s in found.sections} == SECTIONS
    tracker = yaml.safe_load((ROOT / "conf/tracker/wandb.yaml").read_text())
    assert (found.project, found.entity) == (tracker["project"], tracker["entity"] or "")


def test_project_entity_and_file_are_chosen(tmp_path):
    done = command("--project", "p", "--entity", "e", "-o", "here.json", cwd=tmp_path, WANDB_API_KEY="f00d" * 10)
    assert done.returncode == 0, done.stderr
    found = read(tmp_path / "here.json")
    assert (found.project, found.entity) == ("p", "e")
    assert not (tmp_path / "outputs").exists()


def test_the_file_holds_what_would_be_sent(monkeypatch):
    """A mock of the call to the server: what the package would send."""
    sent = []

    def upserted(view):
        sent.append(json.loads(view.spec.model_dump_json(by_alias=True, exclude_none=True)))
        return {"upsertView": {"view": {"name": "n", "id": "i"}}}

    monkeypatch.setattr(internal, "upsert_view2", upserted)
    monkeypatch.setattr(ws.Workspace, "url", "https://there")
    made = dashboard.workspace("p", "e")
    written = json.loads(dashboard.definition(made))
    made.save()
    assert sent == [written["spec"]]


def names_of(panel):
    """The summary's figures, the configuration's keys and the rows' names that a panel shows."""
    if isinstance(panel, wr.ScatterPlot):
        shown = [panel.x, panel.y]
    elif isinstance(panel, wr.ParallelCoordinatesPlot):
        shown = [column.metric for column in panel.columns]
    elif isinstance(panel, wr.MediaBrowser):
        shown = [wr.Metric(f"{key}/values") for key in panel.media_keys]
    elif isinstance(panel, wr.WeavePanelSummaryTable):
        shown = [wr.Metric(f"{panel.table_name}/nrows")]
    else:
        shown = [wr.Metric(panel.x), *(wr.Metric(name) for name in panel.y), panel.groupby]
    return shown


def test_it_shows_what_a_run_logs(conf, tmp_path):
    config = conf("method=adaptive_rmu", "train.steps=2", *ASKED, *TEXTS, f"output_root={tmp_path}")
    found = records(run(config))
    logged = {name for row in rows(found) for name in row}
    keys = {f"{group}.{key}" for group in ("rna", "method") for key in asdict(config)[group]} | {"seed", "method.c"}
    made = dashboard.workspace("p", "e")
    shown = [name for section in made.sections for panel in section.panels for name in names_of(panel)]
    assert len(shown) > 30
    for name in shown:
        place = (
            keys if isinstance(name, wr.Config) else summary(found) if isinstance(name, wr.SummaryMetric) else logged
        )
        assert name.name in place
    for column in made.runset_settings.pinned_columns[1:]:
        kind, name = column.split(":")
        assert name in (keys if kind == "config" else summary(found))
    curves = {line for line in logged if line.startswith("train/")} - {"train/step", "train/topic"}
    [training] = [section for section in made.sections if section.name == "Training"]
    assert {panel.y[0] for panel in training.panels} == curves  # all of them


class Refuses(BaseHTTPRequestHandler):
    def do_GET(self):  # it is alive
        self.send_response(200)
        self.end_headers()

    def do_POST(self):
        self.send_response(403)
        self.end_headers()
        self.wfile.write(b'{"errors": [{"message": "permission denied"}]}')

    def log_message(self, *_):
        pass


@pytest.fixture
def refusing():
    server = HTTPServer(("127.0.0.1", 0), Refuses)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_server_that_refuses_is_one_line(tmp_path, refusing):
    done = command("--entity", "e", cwd=tmp_path, WANDB_BASE_URL=refusing, WANDB_API_KEY="f00d" * 10)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("Error: W&B rejected the dashboard: ")
    assert "f00d" not in done.stderr
    assert not (tmp_path / "outputs").exists()


def test_without_the_package_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    with pytest.raises(SystemExit, match="pip install wandb-workspaces"):
        main(["dashboard", "-o", "never"])


def test_a_dashboard_that_is_saved_is_said(monkeypatch, capsys):
    """A mock of the server: nothing is sent."""
    monkeypatch.setattr(dashboard, "automatic_mode", lambda _: "online")
    monkeypatch.setattr(ws.Workspace, "save", lambda self: SimpleNamespace(url=f"https://{self.entity}/{self.project}"))
    main(["dashboard", "--entity", "e", "--project", "p"])
    assert "Dashboard: https://e/p" in capsys.readouterr().err
