"""Compare two runs question by question: `python -m unlearn.compare RUN_A RUN_B` (B against A; RNA against none).

For every task and query that both were asked: accuracies of the unlearned models, the paired difference with its
95 % interval, and McNemar's test, from the records in samples/.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from unlearn.errors import UserError
from unlearn.evaluate.statistics import Paired, paired
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


def compare(a: Correct, b: Correct) -> dict[tuple[str, str], Paired]:
    """For each task and query of both, and for "all" tasks of a query together, over the questions of both."""
    found = {}
    together: dict[str, tuple[list[bool], list[bool]]] = {}
    for task, query in a.keys() & b.keys():
        questions = sorted(a[task, query].keys() & b[task, query].keys())
        if not questions:
            continue
        left, right = ([run[task, query][q] for q in questions] for run in (a, b))
        found[task, query] = paired(left, right)
        both = together.setdefault(query, ([], []))
        both[0].extend(left)
        both[1].extend(right)
    pooled = {("all", query): paired(*pair) for query, pair in together.items()}
    return dict(sorted(found.items())) | dict(sorted(pooled.items()))


def main() -> None:
    """Print the table; exit status 1 with one line if there is nothing to compare."""
    parser = argparse.ArgumentParser(prog="python -m unlearn.compare", description=__doc__)
    parser.add_argument("a", type=Path, metavar="RUN_A")
    parser.add_argument("b", type=Path, metavar="RUN_B")
    args = parser.parse_args()
    try:
        results = compare(read_samples(args.a), read_samples(args.b))
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
