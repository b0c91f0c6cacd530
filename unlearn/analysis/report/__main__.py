"""A report on any set of runs.

python -m unlearn.report RUN_OR_SWEEP_DIR... -o report.html     a page: tables, the paper's figures, what is missing
python -m unlearn.report outputs --figures figures/             each figure as PDF and PNG in paper style, and as CSV
python -m unlearn.report outputs --format latex --table table_1   a table for a paper (md, latex or csv)
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from unlearn.analysis.report.collect import collect
from unlearn.analysis.report.export import write_figures, write_table
from unlearn.analysis.report.figures import figures
from unlearn.analysis.report.material import Material, gather
from unlearn.analysis.report.page import page
from unlearn.analysis.report.tables import TABLES, Table, tables
from unlearn.errors import UserError
from unlearn.screen import say
from unlearn.storage.files import write_atomically

TOLD = 10  # lines about runs that are not used


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and write what it asks for; exit status 1 with one line for the user's mistakes."""
    parser = argparse.ArgumentParser(
        prog="python -m unlearn.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="RUN_OR_SWEEP_DIR", help="or a folder that holds such")
    parser.add_argument("-o", "--output", type=Path, help="default: report.html; tables go to the terminal")
    parser.add_argument("--format", choices=("html", "md", "latex", "csv"), default="html")
    parser.add_argument("--table", choices=TABLES, help="with md, latex or csv: which (default: table_1)")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="write each figure there, as PDF, PNG and CSV")
    parser.add_argument("--paper", action="store_true", help="lay the paper's published numbers beside one's own")
    parser.add_argument("--title", default="Unlearning report")
    args = parser.parse_args(arguments)
    if args.format == "html" and args.table is not None:
        parser.error("--table goes with --format md, latex or csv: the page has all tables.")
    if args.table == "published" and not args.paper:
        parser.error("--table published goes with --paper.")
    try:
        _report(args)
    except (UserError, OSError) as error:
        sys.exit(f"Error: {error}")


def _report(args: argparse.Namespace) -> None:
    began = time.monotonic()
    material = gather(collect(args.folders), paper=args.paper)
    drawn = list(figures(material))
    listed = tables(material)
    _tell(material, listed)
    if args.figures is not None:
        say(f"{write_figures(args.figures, drawn)} figures: {args.figures}")
    if args.format != "html":
        write_table(next(t for t in listed if t.name == (args.table or "table_1")), args.format, args.output)
        return
    output = args.output or Path("report.html")
    write_atomically(output, page(material, listed, drawn, title=args.title))
    size = output.stat().st_size / 2**20
    say(f"{output}: {len(material.runs)} runs, {size:.1f} MB, {time.monotonic() - began:.0f} s")


def _tell(material: Material, listed: Sequence[Table]) -> None:
    """Warnings, and the first of the runs that are not used, or not wholly."""
    for warning in material.warnings:
        say(f"Warning: {warning}")
    left_out = next(table for table in listed if table.name == "unusable").data
    for run in left_out.head(TOLD).itertuples():
        say(f"Not used: {run.folder}: {run.status}: {run.why}")
    if len(left_out) > TOLD:
        say(f"... and {len(left_out) - TOLD} more, in the report's last table.")


if __name__ == "__main__":
    main()
