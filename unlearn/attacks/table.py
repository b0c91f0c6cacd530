"""The results of attacks, on the screen."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from unlearn.attacks.stages import BASE, UNLEARNED, Stages
from unlearn.config.schema import text_role
from unlearn.records.legacy import flat_role_means as role_means
from unlearn.screen import console

QUERIES = ("default", "perturbed")  # the kinds of query of a run that are asked under attack
MEASURES = {
    "acc": ("accuracy, %", 100.0, 1),
    "nats": ("nats a token", 1.0, 2),
}  # metric -> what the table calls it, its factor, digits
# (role, metric) -> a change from the base model that is next to none.
LITTLE = {("forget", "acc"): -0.03, (text_role("forget"), "nats"): 0.1}


def nothing_forgotten(untouched: Stages) -> bool:
    """Whether the unlearned model, without an attack, answers what was to be forgotten about as the base model does."""
    changes = []
    for (role, metric), little in LITTLE.items():
        unlearned, base = (
            role_means(levels.get("0", {}), untouched.about["roles"], label, metric).get((role, "default"))
            for label, levels in ((UNLEARNED, untouched.levels), (BASE, untouched.others[BASE]))
        )
        if unlearned is not None and base is not None:
            changes.append((unlearned - base) / little)
    return bool(changes) and max(changes) <= 1


def show(title: str, results: Sequence[Stages]) -> None:
    """A table with a row for each level, model (unlearned, base, retrained) and measure, by role and query."""
    roles = dict.fromkeys(role for stages in results for role in stages.about["roles"])
    columns = [(role, query) for role in roles for query in QUERIES]
    rows = [
        (stages.about["attack"], stages.about["levels"][level], label, MEASURES[measure][0], figures)
        for stages in results
        for level in stages.levels
        for label, levels in {UNLEARNED: stages.levels, **stages.others}.items()
        for measure in MEASURES
        if (figures := role_means(levels.get(level, {}), stages.about["roles"], label, measure))
    ]
    shown = [column for column in columns if any(column in figures for *_, figures in rows)]
    table = Table(title=f"Attacks, {title}", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("attack", "level", "model", "measure"):
        table.add_column(name)
    for role, query in shown:
        table.add_column(f"{role} {query}", justify="right")
    scale = {name: (factor, digits) for name, factor, digits in MEASURES.values()}
    for *names, measure, figures in rows:
        factor, digits = scale[measure]
        cells = (f"{factor * figures[c]:.{digits}f}" if c in figures else "" for c in shown)
        table.add_row(*names, measure, *cells)
    console.print(table)
