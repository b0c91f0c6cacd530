"""Compare two runs question by question: `unlearn compare RUN_A RUN_B` (B against A; RNA against none).

For every task and query that both were asked, and for the tasks of each role together: the difference of the unlearned
models' accuracies with its 95 % interval, and McNemar's test, paired by question, from samples.parquet. Questions about
one fact count as one (`unlearn.statistics.paired`). For held-out texts: of the nats a token, with a t-test, paired by
document.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from unlearn.analysis.collect import OF_QUESTIONS, Run, read_run
from unlearn.errors import UserError
from unlearn.records.run import RECORD
from unlearn.records.samples import Sample
from unlearn.runs.evaluations import evaluations_of
from unlearn.screen import console, say
from unlearn.statistics.paired import Paired, PairedMeans, paired, paired_means

OTHER_QUESTIONS = (
    "the questions differ in their text, options, right answers, replaced words (eval.forget_tokens, eval.seed, "
    "eval.control_tokens, eval.position, eval.local_dir, ...) or in the rules that judge them"
)
# (role, task, query) -> question -> sample, of one model
Samples = dict[tuple[str, str, str], dict[int, Sample]]


@dataclass(frozen=True)
class Comparison:
    """Of two runs: (task, query) and (role, query) -> result, and (role, query) -> why it is left out."""

    tasks: dict[tuple[str, str], Paired | PairedMeans]
    roles: dict[tuple[str, str], Paired | PairedMeans]
    refused: dict[tuple[str, str], str]
    differing: dict[tuple[str, str], int] = field(default_factory=dict)  # (role, query) -> questions of other content

    @property
    def results(self) -> dict[tuple[str, str], Paired | PairedMeans]:
        """Those of tasks, then those of roles."""
        return self.tasks | self.roles


def by_place(samples: Iterable[Sample], model: str = "unlearned") -> Samples:
    """The samples of one model by role, task and query. Places of which a sample has no value are left out."""
    return {
        place: of_place
        for place, of_place in _all_places(samples, model).items()
        if all(sample.value is not None for sample in of_place.values())
    }


def _all_places(samples: Iterable[Sample], model: str) -> Samples:
    places: Samples = {}
    for sample in samples:
        if sample.model == model:
            places.setdefault((sample.role, sample.task, sample.query), {})[sample.id] = sample
    return places


def not_finite(samples: Iterable[Sample], model: str = "unlearned") -> dict[tuple[str, str], int]:
    """(role, query) -> how many of one model's answers are not finite, where some are not.

    That is so if a number is not, and of a question without a value beside others that have one: its text was made of
    such numbers.
    """
    counts: dict[tuple[str, str], int] = {}
    for (role, _, query), of_place in _all_places(samples, model).items():
        are_judged = any(sample.value is not None for sample in of_place.values())
        for sample in of_place.values():
            if not sample.is_finite or (are_judged and sample.value is None):
                counts[role, query] = counts.get((role, query), 0) + 1
    return counts


def pairs(a: Mapping[int, Sample], b: Mapping[int, Sample]) -> list[tuple[Sample, Sample]]:
    """The samples of the same questions in two runs. Those of other content under the same number are left out."""
    common = sorted(a.keys() & b.keys())
    return [(a[number], b[number]) for number in common if a[number].question == b[number].question]


def differences_by_task(a: Run, b: Run, role: str, query: str) -> dict[str, dict[tuple[str, str], float]]:
    """Task or group -> question, or fact of several -> the unlearned model's value in `b` less that in `a`.

    Texts into which the same word was inserted are one item.
    """
    groups = {(score.role, score.task): score.part_of for score in a.scores}
    left, right = by_place(a.samples()), by_place(b.samples())
    values: dict[str, dict[tuple[str, str], list[float]]] = {}
    for place in sorted(left.keys() & right.keys()):
        if (place[0], place[2]) == (role, query):
            of_task = values.setdefault(groups.get(place[:2]) or place[1], {})
            for x, y in pairs(left[place], right[place]):
                item = y.item if y.nats is None or y.inserted is None else (y.task, y.inserted)
                of_task.setdefault(item, []).append((y.value or 0.0) - (x.value or 0.0))
    return {task: {item: fmean(own) for item, own in of_task.items()} for task, of_task in values.items()}


def differing_questions(a: Run, b: Run, query: str, role: str | None = None) -> str | None:
    """Why the answers of two runs to a kind of query, of a role or of all, cannot be paired; None if they can.

    Runs over different subsets can be paired on their common questions.
    """
    roles = a.roles.keys() & b.roles.keys() if role is None else {role}
    if all(a.question_hash(query, r) == b.question_hash(query, r) for r in roles):
        return None
    left, right = by_place(a.samples()), by_place(b.samples())
    for place in left.keys() & right.keys():
        if place[0] in roles and place[2] == query:
            common = left[place].keys() & right[place].keys()
            if len(pairs(left[place], right[place])) < len(common):
                return _why_other_questions(a, b, query, place[0])
    return None


def _why_other_questions(a: Run, b: Run, query: str, role: str) -> str:
    """The key of `eval` by which the questions of two runs differ, if there is one."""
    for left in a.evaluations:
        for right in b.evaluations:
            if left.asks(query, role) and right.asks(query, role):
                for key in OF_QUESTIONS:
                    if left.config.get(key) != right.config.get(key):
                        return f"eval.{key} differs: {left.config.get(key)} and {right.config.get(key)}"
    return OTHER_QUESTIONS


def compare(a: Samples, b: Samples) -> Comparison:
    """For each task and query of both, and for each role's tasks together, over the questions of both."""
    by_task: dict[tuple[str, str], list[tuple[Sample, Sample]]] = {}
    by_role: dict[tuple[str, str], list[tuple[Sample, Sample]]] = {}
    refused: dict[tuple[str, str], str] = {}
    differing: dict[tuple[str, str], int] = {}
    for role, task, query in sorted(a.keys() & b.keys()):
        left, right = a[role, task, query], b[role, task, query]
        both = pairs(left, right)
        if others := len(left.keys() & right.keys()) - len(both):
            differing[role, query] = differing.get((role, query), 0) + others
        if not both:
            refused[role, query] = OTHER_QUESTIONS
            continue
        by_task[task, query] = both
        by_role.setdefault((role, query), []).extend(both)
    return Comparison(
        {name: _paired(both) for name, both in by_task.items()},
        {name: _paired(both) for name, both in sorted(by_role.items())},
        refused,
        differing,
    )


def compare_answers(a: Run, b: Run) -> Comparison:
    """`compare` for the unlearned models of two runs, without what has answers that are not finite.

    Raises UserError for answers that cannot be read.
    """
    comparison = compare(by_place(a.samples()), by_place(b.samples()))
    refused = {(role, query): _why_other_questions(a, b, query, role) for role, query in comparison.refused}
    for run in (a, b):
        for place, count in not_finite(run.samples()).items():
            refused[place] = f"{count} answers of {run.folder} are not finite"
    roles = {place: result for place, result in comparison.roles.items() if place not in refused}
    return replace(comparison, roles=roles, refused=refused)


def _paired(both: list[tuple[Sample, Sample]]) -> Paired | PairedMeans:
    if both[0][0].nats is None:
        return paired([bool(a.correct) for a, _ in both], [bool(b.correct) for _, b in both], [b.item for _, b in both])
    return paired_means([a.value or 0.0 for a, _ in both], [b.value or 0.0 for _, b in both])


def compare_runs(a: Path, b: Path) -> Comparison:
    """`compare` for two runs' folders.

    Raises UserError for a folder without a run or without answers, and for answers that cannot be read.
    """
    return compare_answers(*_runs_with_samples(a, b))


def _runs_with_samples(*folders: Path) -> list[Run]:
    for folder in folders:
        if not (folder / RECORD).exists():
            raise UserError(f"{folder}: no run is here (there is no {RECORD}).")
    return [_run_with_samples(folder) for folder in folders]


def _run_with_samples(folder: Path) -> Run:
    run = read_run(folder)
    if run.status == "corrupt":
        raise UserError(run.why if str(folder) in run.why else f"{folder}: {run.why}")
    if not run.done:  # an evaluation of it may be there
        run = replace(run, evaluations=evaluations_of(folder, run.record))
    if not any(sample.model == "unlearned" for sample in run.samples()):
        raise UserError(f"{folder}: there are no samples of an unlearned model (samples.parquet).")
    return run


def show_comparison(a: Path, b: Path) -> None:
    """Print the tables of `compare_runs`. Raises UserError if there is nothing to compare."""
    runs = _runs_with_samples(a, b)
    comparison = compare_answers(*runs)
    for run in runs:
        if not run.done:
            status = run.record.get("status")
            say(f"Warning: {run.folder} is not done but {status}: its answers may not be all.")
    for (role, query), why in comparison.refused.items():
        say(f"{query} queries of {role} are not compared: {why}.")
    for (role, query), count in comparison.differing.items():
        if (role, query) not in comparison.refused:
            say(f"{count} {query} queries of {role} are left out: {OTHER_QUESTIONS}.")
    if not comparison.results:
        raise UserError("the two runs have no task and query in common that can be compared.")
    title = f"{b.name} minus {a.name}"
    questions = _table(f"{title}: accuracy in points", "questions", "only A:B right", "McNemar p")
    texts = _table(f"{title}: nats a token", "texts", "t-test p")
    for (name, query), r in comparison.results.items():
        if isinstance(r, Paired):
            difference = f"{100 * r.difference:+.1f} ({100 * r.low:+.1f} .. {100 * r.high:+.1f})"
            questions.add_row(name, query, difference, str(r.questions), f"{r.only_a}:{r.only_b}", f"{r.p:.2g}")
        else:
            difference = f"{r.difference:+.3f} ({r.low:+.3f} .. {r.high:+.3f})"
            texts.add_row(name, query, difference, str(r.documents), f"{r.p:.2g}")
    for table in (questions, texts):
        if table.row_count:
            console.print(table)


def _table(title: str, counted: str, *tests: str) -> Table:
    """A table that fits into 80 columns: long names of tasks are folded."""
    table = Table(title=escape(title), box=SIMPLE_HEAD, pad_edge=False)
    for column in ("task or role", "query"):
        table.add_column(column, overflow="fold")
    for column in ("difference (95 %)", counted, *tests):
        table.add_column(column, justify="right", no_wrap=column.startswith("difference"))
    return table
