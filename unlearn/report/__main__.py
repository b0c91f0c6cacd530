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

from unlearn.errors import UserError
from unlearn.files import write_atomically
from unlearn.report.collect import collect, warnings
from unlearn.report.export import write_figures, write_tables
from unlearn.report.figures import figures
from unlearn.report.material import gather
from unlearn.report.page import page
from unlearn.report.tables import TABLES, tables
from unlearn.screen import say


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and write what it asks for; exit status 1 with one line for the user's mistakes."""
    parser = argparse.ArgumentParser(
        prog="python -m unlearn.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="RUN_OR_SWEEP_DIR", help="or a folder that holds such")
    parser.add_argument("-o", "--output", type=Path, help="default: report.html; tables go to the terminal")
    parser.add_argument("--format", choices=("html", "md", "latex", "csv"), default="html")
    parser.add_argument("--table", choices=TABLES, default="table_1", help="with md, latex or csv: which")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="write each figure there, as PDF, PNG and CSV")
    parser.add_argument("--paper", action="store_true", help="lay the paper's published numbers beside one's own")
    parser.add_argument("--title", default="Unlearning report")
    args = parser.parse_args(arguments)
    try:
        _report(args)
    except UserError as error:
        sys.exit(f"Error: {error}")


def _report(args: argparse.Namespace) -> None:
    began = time.monotonic()
    runs = collect(args.folders)
    for warning in warnings(runs):
        say(f"Warning: {warning}")
    for run in (run for run in runs if not run.done):
        say(f"Not used: {run.folder}: {run.status}: {run.why.strip()}")
    material = gather(runs, paper=args.paper)
    if args.figures is not None:
        written = write_figures(args.figures, figures(material))
        say(f"{written} figures: {args.figures}")
    listed = tables(material)
    if args.format != "html":
        write_tables([t for t in listed if t.name == args.table], args.format, args.output)
        return
    output = args.output or Path("report.html")
    write_atomically(output, page(material, listed, list(figures(material)), title=args.title))
    size = output.stat().st_size / 2**20
    say(f"{output}: {len(runs)} runs, {size:.1f} MB, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
