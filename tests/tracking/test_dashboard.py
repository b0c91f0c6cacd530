"""The dashboard: its definition is what W&B's own package reads and sends, and names what a real run logs.

Saving it needs W&B's server: here only one that refuses, and one that is mocked.
"""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
import yaml
from wandb_workspaces.workspaces import internal

from tests.conftest import ROOT
from unlearn.cli.main import main
from unlearn.tracking import dashboard

SECTIONS = {
    "Robustness": [wr.ScatterPlot] * 4,
    "Forgetting against robustness": [wr.ScatterPlot],
    "Held-out texts": [wr.ScatterPlot] * 3,
    "Course of training": [wr.LinePlot] * 3,
    "MaxLogit": [wr.ScatterPlot, wr.MediaBrowser],
    "All at once": [wr.ParallelCoordinatesPlot],
    "Training": [wr.LinePlot] * 10,
    "Tables": [wr.WeavePanelSummaryTable] * 3,
}


def read(file):
    """The workspace of a file, as the package reads it from a server."""
    return ws.Workspace._from_model(internal.View.model_validate_json(file.read_text()))


def test_offline_it_is_a_file_that_the_package_reads(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["dashboard"])
    assert "outputs/dashboard.json" in capsys.readouterr().err
    found = read(tmp_path / "outputs/dashboard.json")
    assert {s.name: [type(p) for p in s.panels] for s in found.sections} == SECTIONS
    tracker = yaml.safe_load((ROOT / "conf/tracker/wandb.yaml").read_text())
    assert (found.project, found.entity) == (tracker["project"], tracker["entity"] or "")
    main(["dashboard", "--project", "p", "--entity", "e", "-o", "here.json"])
    found = read(tmp_path / "here.json")
    assert (found.project, found.entity) == ("p", "e")


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
    kept = {k: v for k, v in os.environ.items() if k not in ("WANDB_MODE", "WANDB_SERVICE")}
    own = {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "WANDB_BASE_URL": refusing, "WANDB_API_KEY": "f00d" * 10}
    command = [sys.executable, "-m", "unlearn", "dashboard", "--entity", "e"]
    done = subprocess.run(command, cwd=tmp_path, env=kept | own, capture_output=True, text=True, check=False)
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
