"""The project's dashboard in W&B: robustness, forgetting, MaxLogit, curves and tables of all its runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import wandb
import yaml

from unlearn.config.compose import CONF
from unlearn.errors import UserError, describe
from unlearn.screen import say
from unlearn.storage.files import write_atomically
from unlearn.tracking.wandb_run import automatic_mode

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2.interface import LinePlot, ParallelCoordinatesPlot, ScatterPlot
    from wandb_workspaces.workspaces import Workspace

NAME = "Unlearning"
ROBUST, FORGET = "retain/perturbed/acc", "forget/default/acc"
TEXT_COST, FORGOTTEN_TEXT = "robustness/text_cost", "forget_text/default/nats"
AGREEMENT = "retain_text/perturbed/agreement"
COURSE = (FORGOTTEN_TEXT, "retain_text/default/nats", TEXT_COST)
MAXLOGIT = "retain/perturbed/maxlogit_mean"
VARIED = ("method.name", "method.c", "method.beta", "rna.nu", "seed")  # keys of the configuration
TABLES = ("evaluation", "texts", "questions")
CURVES = (
    "forget_loss", "retain_loss", "loss", "forget_cosine", "forget_norm", "retain_norm", "retain_drift",
    "gradient_norm", "tokens_per_second", "memory_mb",
)  # fmt: skip
# Grouping the runs themselves by method would average each method's runs into one point of a scatter plot.
LEGEND = "${config:method.name} nu=${config:rna.nu}"


def workspace(project: str, entity: str) -> Workspace:
    """The dashboard of a project. Raises UserError without the package wandb-workspaces."""
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ImportError:
        raise UserError("the package wandb-workspaces is not installed: pip install wandb-workspaces") from None
    histograms = [f"maxlogit/{model}/retain/perturbed" for model in ("base", "unlearned")]
    against_parameters = [_scatter(f"config:{key}", ROBUST) for key in ("rna.nu", "method.c", "method.beta")]
    return ws.Workspace(
        project=project,
        entity=entity,
        name=NAME,
        sections=[
            ws.Section("Robustness", [*against_parameters, _scatter("config:rna.nu", "robustness/drop")], is_open=True),
            ws.Section("Forgetting against robustness", [_scatter(FORGET, ROBUST)], is_open=True),
            ws.Section(
                "Held-out texts",
                [
                    _scatter("config:rna.nu", TEXT_COST),
                    _scatter(FORGOTTEN_TEXT, TEXT_COST),
                    _scatter(FORGOTTEN_TEXT, AGREEMENT),
                ],
            ),
            ws.Section("Course of training", [_curve(f"course/{name}", "course/step") for name in COURSE]),
            ws.Section(
                "MaxLogit",
                [_scatter("config:rna.nu", MAXLOGIT), wr.MediaBrowser(title="MaxLogit", media_keys=histograms)],
            ),
            ws.Section("All at once", [_parallel([*VARIED], ["retain/default/acc", ROBUST, FORGET])]),
            ws.Section("Training", [_curve(f"train/{name}") for name in CURVES]),
            ws.Section("Tables", [wr.WeavePanelSummaryTable(table_name=name) for name in TABLES]),
        ],
        settings=ws.WorkspaceSettings(max_runs=100),
        runset_settings=ws.RunsetSettings(
            pinned_columns=[
                *(f"config:{key}" for key in VARIED),
                *(f"summary:{key}" for key in (ROBUST, FORGET, "robustness/drop")),
            ],
        ),
    )


def _scatter(x: str, y: str) -> ScatterPlot:
    """One point per run: a value of its summary against another value, or against a setting given as config:KEY."""
    import wandb_workspaces.reports.v2 as wr

    _, setting, key = x.rpartition("config:")
    across = wr.Config(key) if setting else wr.SummaryMetric(x)
    return wr.ScatterPlot(title=f"{y} against {key}", x=across, y=wr.SummaryMetric(y), legend_template=LEGEND)


def _parallel(settings: list[str], figures: list[str]) -> ParallelCoordinatesPlot:
    import wandb_workspaces.reports.v2 as wr

    column = wr.ParallelCoordinatesPlotColumn
    columns = [column(wr.Config(key)) for key in settings] + [column(wr.SummaryMetric(key)) for key in figures]
    return wr.ParallelCoordinatesPlot(title="Settings and accuracies", columns=columns)


def _curve(name: str, x: str = "train/step") -> LinePlot:
    """Mean and range of each method's runs."""
    import wandb_workspaces.reports.v2 as wr

    return wr.LinePlot(
        title=name,
        x=x,
        y=[name],
        groupby=wr.Config("method.name"),
        groupby_aggfunc="mean",
        groupby_rangefunc="minmax",
    )


def definition(dashboard: Workspace) -> str:
    """The JSON that the package would send to the server."""
    return dashboard._to_model().model_dump_json(by_alias=True, exclude_none=True, indent=2) + "\n"


def create_dashboard(project: str | None, entity: str | None, file: Path | None) -> None:
    """Create the dashboard on W&B's server, or write its definition to a file: if `file` is given, or without a login.

    The default project is that of conf/tracker/wandb.yaml. Raises UserError if the server rejects the dashboard.
    """
    tracker = yaml.safe_load((CONF / "tracker/wandb.yaml").read_text())
    default = Path(yaml.safe_load((CONF / "config.yaml").read_text())["output_root"]) / "dashboard.json"
    project, entity = project or tracker["project"], entity or tracker["entity"]
    if file is not None or automatic_mode(tracker["timeout_s"]) != "online":
        file = file or default
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, definition(workspace(project, entity or "")))
        say(f"Wrote the dashboard's definition to {file}. If you are logged in, this command creates it in W&B.")
        return
    try:
        saved = workspace(project, entity or wandb.Api().default_entity or "").save()
    except UserError:
        raise
    except Exception as error:  # the errors of the server and the package share no base class
        raise UserError(f"W&B rejected the dashboard: {' '.join(describe(error).split())}") from error
    say(f"Dashboard: {saved.url}")
