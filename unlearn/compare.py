"""Compare two runs question by question: `python -m unlearn.compare RUN_A RUN_B` (B against A; RNA against none).

For every task and query that both were asked, and for the tasks of each role together: the difference of the unlearned
models' accuracies with its 95 % interval, and McNemar's test, paired by question, from the records in samples/.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from unlearn.errors import UserError
from unlearn.evaluate.statistics import Paired, paired
from unlearn.run_folder import ROLES
from unlearn.screen import console

Correct = dict[tuple[str, str], dict[int, bool]]  # (task, query) -> question -> correct


def read_samples(run_dir: Path) -> Correct:
    """What the run's unlearned model answered rightly. Raises UserError if there are no samples."""
    root = run_dir / "samples" / "unlearned"
    found: Correct = {}
    for file in sorted(root.rglob("*.jsonl")):
        records = [json.loads(line) for line in file.read_text().splitlines()]
        found[str(file.parent.relative_to(root)), file.stem] = {r["id"]: r["correct"] for r in records}
    if not found:
        raise UserError(f"{run_dir}: there are no samples of an unlearned model ({root}).")
    return found


def read_roles(run_dir: Path) -> dict[str, list[str]]:
    """Which tasks belong together: role -> tasks."""
    file = run_dir / "samples" / ROLES
    return json.loads(file.read_text()) if file.is_file() else {}


def compare(a: Correct, b: Correct, roles: Mapping[str, Sequence[str]] | None = None) -> dict[tuple[str, str], Paired]:
    """For each task and query of both, and for each role's tasks together, over the questions of both.

    Without `roles` all tasks together are called "all".
    """
    pairs: dict[tuple[str, str], tuple[list[bool], list[bool]]] = {}
    for task, query in sorted(a.keys() & b.keys()):
        questions = sorted(a[task, query].keys() & b[task, query].keys())
        if questions:
            left, right = ([run[task, query][q] for q in questions] for run in (a, b))
            pairs[task, query] = (left, right)
    together: dict[tuple[str, str], tuple[list[bool], list[bool]]] = {}
    for (task, query), (left, right) in pairs.items():
        for role in ["all"] if roles is None else [r for r, tasks in roles.items() if task in tasks]:
            both = together.setdefault((role, query), ([], []))
            both[0].extend(left)
            both[1].extend(right)
    return {name: paired(*pair) for name, pair in (pairs | dict(sorted(together.items()))).items()}


def main() -> None:
    """Print the table; exit status 1 with one line if there is nothing to compare."""
    parser = argparse.ArgumentParser(prog="python -m unlearn.compare", description=__doc__)
    parser.add_argument("a", type=Path, metavar="RUN_A")
    parser.add_argument("b", type=Path, metavar="RUN_B")
    args = parser.parse_args()
    try:
        results = compare(read_samples(args.a), read_samples(args.b), read_roles(args.b))
    except UserError as error:
        sys.exit(f"Error: {error}")
    if not results:
        sys.exit("Error: the two runs were asked no task and query alike.")
    table = Table(title=f"{args.b.name} against {args.a.name}", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("task", "query"):
        table.add_column(column)
    for column in ("questions", "difference", "95 % interval", "only A right", "only B right", "McNemar p"):
        table.add_column(column, justify="right")
    for (task, query), r in results.items():
        interval = f"{100 * r.low:+.1f} .. {100 * r.high:+.1f}"
        counts = (str(r.only_a), str(r.only_b), f"{r.p:.2g}")
        table.add_row(task, query, str(r.questions), f"{100 * r.difference:+.1f}", interval, *counts)
    console.print(table)


if __name__ == "__main__":
    main()
