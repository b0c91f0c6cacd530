"""Writing a report: the page with all figures and tables, or one table, or each figure as a file."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from unlearn.analysis.collect import collect
from unlearn.analysis.report.export import write_figures, write_table
from unlearn.analysis.report.figure import Figure
from unlearn.analysis.report.figures import figures
from unlearn.analysis.report.material import Material, gather
from unlearn.analysis.report.page import page
from unlearn.analysis.report.tables import TABLES, Table, tables
from unlearn.errors import UserError, nearest
from unlearn.screen import say
from unlearn.storage.files import write_atomically

TOLD = 10  # lines about runs that are not used


@dataclass(frozen=True)
class Additions:
    """Further figures and tables, by name."""

    figures: Mapping[str, Callable[[Material], Figure]] = field(default_factory=dict)
    tables: Mapping[str, Callable[[Material], Table]] = field(default_factory=dict)


def write_report(
    folders: Sequence[Path],
    output: Path | None,
    *,
    format: str = "html",  # noqa: A002
    table: str | None = None,
    figures_dir: Path | None = None,
    title: str = "Unlearning report",
    additions: Additions = Additions(),
) -> None:
    """Write a page of all runs in these folders, or one table; `unlearn report --help` explains the arguments.

    An additional figure takes the place of the report's own of that name.

    Raises UserError for folders without runs and for an unknown table.
    """
    allowed = [*TABLES, *additions.tables]
    if table is not None and table not in allowed:
        raise UserError(f"--table {table}: no such table.{nearest(table, allowed)} Allowed: {', '.join(allowed)}.")
    began = time.monotonic()
    material = gather(collect(folders))
    by_name = {figure.name: figure for figure in figures(material)}
    by_name |= {name: make(material) for name, make in additions.figures.items()}
    drawn = list(by_name.values())
    listed = [*tables(material), *(make(material) for make in additions.tables.values())]
    _tell(material, listed)
    if figures_dir is not None:
        say(f"{write_figures(figures_dir, drawn)} figures: {figures_dir}")
    if format != "html":
        write_table(next(t for t in listed if t.name == (table or "table_1")), format, output)
        return
    output = output or Path("report.html")
    write_atomically(output, page(material, listed, drawn, title=title))
    size = output.stat().st_size / 2**20
    say(f"{output}: {len(material.runs)} runs, {size:.1f} MB, {time.monotonic() - began:.0f} s")


def _tell(material: Material, listed: Sequence[Table]) -> None:
    """Print warnings, and the first runs that are not, or not completely, used."""
    for warning in material.warnings:
        say(f"Warning: {warning}")
    left_out = next(table for table in listed if table.name == "unusable").data
    for run in left_out.head(TOLD).itertuples():
        say(f"Not used: {run.folder}: {run.status}: {run.why}")
    if len(left_out) > TOLD:
        say(f"... and {len(left_out) - TOLD} more, in the report's last table.")
