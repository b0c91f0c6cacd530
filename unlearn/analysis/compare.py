"""Compare two runs question by question: `unlearn compare RUN_A RUN_B` (B against A; RNA against none).

For every task and query that both were asked, and for the tasks of each role together: the difference of the unlearned
models' accuracies with its 95 % interval, and McNemar's test, paired by question, from the records in samples/. For
held-out texts: of the nats a token, with a t-test, paired by document.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from unlearn.errors import UserError
from unlearn.evaluate.roles import DRAWN, ROLES
from unlearn.evaluate.statistics import Paired, PairedMeans, nats_a_token, paired, paired_means
from unlearn.runs.evaluations import asked, other_content
from unlearn.screen import console, say
from unlearn.storage.files import read_object

# (task, query) -> question -> correct, or document -> nats a token
Samples = dict[tuple[str, str], dict[int, bool] | dict[int, float]]
Compared = dict[tuple[str, str], Paired | PairedMeans]


def read_samples(run_dir: Path, wanted: Iterable[tuple[str, str]] | None = None, model: str = "unlearned") -> Samples:
    """Which questions the run's "unlearned" or "base" model answered correctly, in all or in some tasks and queries.

    Of held-out texts, their nats a token.
    """
    root = run_dir / "samples" / model
    if wanted is None:
        files = sorted(root.rglob("*.jsonl"))
    else:
        files = [file for task, query in wanted if (file := root / task / f"{query}.jsonl").is_file()]
    return {(str(file.parent.relative_to(root)), file.stem): _values(file) for file in files}


def _values(file: Path) -> dict[int, Any]:
    """Question -> correct, or document -> nats a token. Raises UserError for a line that is not a record of one."""
    found: dict[int, Any] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
            if "nats" in record:
                found[record["id"]] = nats_a_token([record])[0]
            elif "correct" in record:  # what has neither is an answer that is not right or wrong
                found[record["id"]] = record["correct"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file}, line {number}: not a record of a question or of a text: {error}") from None
    return found


def read_record(run_dir: Path) -> dict[str, Any]:
    """The run's run.json. Raises UserError if there is none, or if it is not one."""
    file = run_dir / "run.json"
    if not file.is_file():
        raise UserError(f"{run_dir}: no run is here (there is no run.json).")
    record = read_object(file)
    if not isinstance(record.get("identity"), dict):
        raise UserError(f"{file}: not the record of a run.")
    return record


def differing_questions(a: dict[str, Any], b: dict[str, Any], query: str, role: str | None = None) -> str | None:
    """Why the answers of two runs to a kind of query of a role cannot be paired; None if they can.

    Runs over different subsets can be paired on their common questions.
    """
    left, right = (asked(record, query, role) for record in (a, b))
    shared = left.keys() & right.keys() - {"limit", "subset"}  # none if one of them was not asked
    for key in [key for key in left if key in shared and left[key] != right[key]]:
        if key == "words":
            return "the words that replace options differ (eval.forget_tokens, or the corpora that n-grams are of)"
        return f"eval.{key} differs: {left[key]} and {right[key]}"
    if other_content(a, b, query, role):
        return "the questions or their right answers differ (eval.local_dir, eval.include_path)"
    return None


def read_roles(run_dir: Path) -> dict[str, list[str]]:
    """Which tasks belong together: role -> tasks. Raises UserError for a file that is not JSON."""
    file = run_dir / "samples" / ROLES
    return read_object(file) if file.is_file() else {}


def read_drawn(run_dir: Path) -> dict[str, dict[str, list[int]]]:
    """Role -> task -> the questions that a role's figures are of; all that were asked, where there are none."""
    file = run_dir / "samples" / DRAWN
    return read_object(file) if file.is_file() else {}


def compare(
    a: Samples,
    b: Samples,
    roles: Mapping[str, Sequence[str]] | None = None,
    drawn: Mapping[str, Mapping[str, Sequence[int]]] = {},
) -> Compared:
    """For each task and query of both, and for each role's tasks together, over the questions of both.

    Without `roles` all tasks together are called "all". `drawn`: see `read_drawn`.
    """
    pairs: dict[tuple[str, str], tuple[list[Any], list[Any]]] = {}
    together: dict[tuple[str, str], tuple[list[Any], list[Any]]] = {}
    for task, query in sorted(a.keys() & b.keys()):
        questions = sorted(a[task, query].keys() & b[task, query].keys())
        if not questions:
            continue
        left, right = ([run[task, query][q] for q in questions] for run in (a, b))
        pairs[task, query] = (left, right)
        for role in ["all"] if roles is None else [r for r, tasks in roles.items() if task in tasks]:
            wanted = drawn.get(role, {}).get(task, questions)
            kept = [i for i, question in enumerate(questions) if question in wanted]
            both = together.setdefault((role, query), ([], []))
            both[0].extend(left[i] for i in kept)
            both[1].extend(right[i] for i in kept)
    return {name: _paired(*pair) for name, pair in (pairs | dict(sorted(together.items()))).items()}


def _paired(a: list[Any], b: list[Any]) -> Paired | PairedMeans:
    return paired(a, b) if all(isinstance(value, bool) for value in a + b) else paired_means(a, b)


def compare_runs(a: Path, b: Path) -> tuple[Compared, dict[str, str]]:
    """`compare` for two runs' folders, and why a query is left out if the two were asked different questions.

    Raises UserError for a folder without a run or without answers, and for answers that cannot be read.
    """
    record_a, record_b = read_record(a), read_record(b)
    sides = [read_samples(run) for run in (a, b)]
    for run, samples in zip((a, b), sides, strict=True):
        if not samples:
            raise UserError(f"{run}: there are no samples of an unlearned model ({run / 'samples' / 'unlearned'}).")
    queries = sorted({query for _, query in sides[0].keys() & sides[1].keys()})
    roles = read_roles(b)
    found = [(q, differing_questions(record_a, record_b, q, role)) for q in queries for role in roles or [None]]
    refused = {query: why for query, why in found if why is not None}
    left, right = ({key: v for key, v in side.items() if key[1] not in refused} for side in sides)
    return compare(left, right, roles, read_drawn(b)), refused


def show_comparison(a: Path, b: Path) -> None:
    """Print the table of `compare_runs`. Raises UserError if there is nothing to compare."""
    results, refused = compare_runs(a, b)
    for run in (a, b):
        if (status := read_record(run).get("status")) != "done":
            say(f"Warning: {run} is not done but {status}: its answers may not be all.")
    for query, why in refused.items():
        say(f"{query} queries are not compared: {why}.")
    if not results:
        raise UserError("the two runs have no task and query in common.")
    title = f"{b.name} against {a.name}"
    questions = _table(f"{title}, accuracy in %", "questions", "only A right", "only B right", "McNemar p")
    texts = _table(f"{title}, nats a token", "documents", "t-test p")
    for name, r in results.items():
        if isinstance(r, Paired):
            figures = (f"{100 * r.difference:+.1f}", f"{100 * r.low:+.1f} .. {100 * r.high:+.1f}")
            questions.add_row(*name, str(r.questions), *figures, str(r.only_a), str(r.only_b), f"{r.p:.2g}")
        else:
            figures = (f"{r.difference:+.3f}", f"{r.low:+.3f} .. {r.high:+.3f}")
            texts.add_row(*name, str(r.documents), *figures, f"{r.p:.2g}")
    for table in (questions, texts):
        if table.row_count:
            console.print(table)


def _table(title: str, counted: str, *tested: str) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    for column in ("task", "query"):
        table.add_column(column)
    for column in (counted, "difference", "95 % interval", *tested):
        table.add_column(column, justify="right")
    return table
