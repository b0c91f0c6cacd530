"""What becomes of the paper's claims on any set of runs, whatever their model: each gets a verdict, with its numbers.

python -m unlearn.claims RUN_OR_SWEEP_DIR... -o claims.md
python -m unlearn.claims RUN_OR_SWEEP_DIR... -o claims.md --theory     ... and of its theorems

For each method it takes a model without RNA, those that differ from it in nothing but nu, and those without RNA that
differ in nothing but c or beta, or the layer, in at least two seeds (sweep=figure_2, figure_3, layers; sweep=seeds
eval=paper for the other claims).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from unlearn.analysis.claims.document import document
from unlearn.analysis.claims.evidence import Evidence
from unlearn.analysis.claims.theorems import measure_theorems
from unlearn.analysis.report.collect import collect
from unlearn.analysis.report.material import gather
from unlearn.errors import UserError
from unlearn.screen import say
from unlearn.storage.files import write_atomically


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and write the page; exit status 1 with one line for the user's mistakes."""
    parser = argparse.ArgumentParser(
        prog="python -m unlearn.claims", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="RUN_OR_SWEEP_DIR", help="or a folder that holds such")
    parser.add_argument("-o", "--output", type=Path, help="default: the terminal")
    parser.add_argument("--theory", action="store_true", help="run unlearn.theory first on a seed of each method")
    parser.add_argument("--limit", type=int, default=100, help="questions of --theory (default: %(default)s)")
    parser.add_argument("--title", default="The paper's claims")
    parser.add_argument(
        "--preface", type=Path, metavar="FILE", help="Markdown to begin with, such as what was run and why"
    )
    args = parser.parse_args(arguments)
    try:
        preface = args.preface.read_text(encoding="utf-8") if args.preface else ""
        material = gather(collect(args.folders))
        evidence = Evidence(material)
        if args.theory:
            measure_theorems(evidence.subjects, args.limit)
        page = document(evidence, args.title, preface)
        for warning in [*material.warnings, *(f"{run}: {why}" for run, why in material.problems.items())]:
            say(f"Warning: {warning}")
        if args.output is None:
            sys.stdout.write(page)
        else:
            write_atomically(args.output, page)
            say(f"{args.output}: {len(material.runs)} runs")
    except (UserError, OSError) as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
