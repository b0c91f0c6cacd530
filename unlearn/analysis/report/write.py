"""Writing a report: the page with all figures and tables, or one table, or each figure as a file."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from unlearn.analysis.collect import collect
from unlearn.analysis.report.export import write_figures, write_table
from unlearn.analysis.report.figure import Figure, Table
from unlearn.analysis.report.figures import figures
from unlearn.analysis.report.material import Material, gather
from unlearn.analysis.report.page import page
from unlearn.analysis.report.tables import TABLES
from unlearn.analysis.searches import find_searches
from unlearn.errors import UserError, nearest
from unlearn.screen import say
from unlearn.storage.files import check_writable, write_atomically

MOST_LINES = 10  # about runs that are not used


@dataclass(frozen=True)
class Additions:
    """Further figures and tables, by name."""

    figures: Mapping[str, Callable[[Material], Figure | None]] = field(default_factory=dict)
    tables: Mapping[str, Callable[[Material], Table | None]] = field(default_factory=dict)


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

    Raises UserError for folders without runs, for an unknown or empty table, and for an output that cannot be written.
    """
    makers = {**TABLES, **additions.tables}
    if table is not None and table not in makers:
        raise UserError(f"--table {table}: no such table.{nearest(table, makers)} Allowed: {', '.join(makers)}.")
    if format == "html" and output is None:
        output = Path("report.html")
    if output is not None:
        check_output(output)
    if figures_dir is not None:
        check_writable(figures_dir, "--figures DIR chooses another place.")
    began = time.monotonic()
    material = gather(collect(folders), find_searches(folders))
    by_name = {figure.name: figure for figure in figures(material)}
    for name, make in additions.figures.items():
        figure = make(material)
        if figure is not None:
            by_name[name] = figure
    tables = {name: made for name, make in makers.items() if (made := make(material)) is not None}
    _tell(material, tables.get("unusable"))
    if figures_dir is not None:
        say(f"{write_figures(figures_dir, by_name.values())} figures: {figures_dir}")
    if format != "html":
        name = table or "settings"
        if name not in tables:
            raise UserError(f"--table {name}: these runs have nothing for it. There is: {', '.join(tables)}.")
        write_table(tables[name], format, output)
    elif output is not None:
        write_atomically(output, page(material, list(tables.values()), list(by_name.values()), title=title))
        size = output.stat().st_size / 2**20
        say(f"{output}: {len(material.runs)} runs, {size:.1f} MB, {time.monotonic() - began:.0f} s")


def check_output(file: Path) -> None:
    """Raise UserError if a file cannot be written there. Its folder is made."""
    if file.is_dir():
        raise UserError(f"-o {file}: it is a folder; name a file.")
    if file.exists() and not file.is_file():
        raise UserError(f"-o {file}: it is no regular file, which could be replaced. Leave out -o for the terminal.")
    check_writable(file.parent, "-o FILE chooses another place.")


def _tell(material: Material, unusable: Table | None) -> None:
    """Print warnings, and the first runs that are not, or not completely, used."""
    for warning in material.warnings:
        say(f"Warning: {warning}")
    if unusable is None:
        return
    for run in unusable.data.head(MOST_LINES).itertuples():
        say(f"Not used: {run.folder}: {run.status}: {run.why}")
    if len(unusable.data) > MOST_LINES:
        say(f"... and {len(unusable.data) - MOST_LINES} more, in the report's last table.")
