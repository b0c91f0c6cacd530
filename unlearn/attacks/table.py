"""What attacks found, on the screen."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from unlearn.attacks.make import Planned
from unlearn.attacks.stages import BASE, Stages
from unlearn.config.schema import text_role
from unlearn.records.legacy import flat_role_means as role_means
from unlearn.screen import console

QUERIES = ("default", "perturbed")  # that are asked under attack, of those of the run
MEASURES = {
    "acc": ("accuracy, %", 100.0, 1),
    "nats": ("nats a token", 1.0, 2),
    "rouge": ("ROUGE-L recall, %", 100.0, 1),
    "repeated": ("repeated, %", 100.0, 1),
    "base_nats": ("nats, base model", 1.0, 2),
}  # metric -> what the table calls it, its factor, digits
# (role, metric) -> a change from the base model that is next to none.
LITTLE = {("forget", "acc"): -0.03, (text_role("forget"), "nats"): 0.1}

Found = tuple[Planned, Stages]


def nothing_forgotten(untouched: Stages) -> bool:
    """Whether the unlearned model, before any attack, answers what was to be forgotten about as the base model does."""
    changes = []
    for (role, metric), little in LITTLE.items():
        own, base = (
            role_means(stages.get("0", {}), untouched.about["roles"], label, metric).get((role, "default"))
            for label, stages in (("unlearned", untouched.found), (BASE, untouched.others[BASE]))
        )
        if own is not None and base is not None:
            changes.append((own - base) / little)
    return bool(changes) and max(changes) <= 1


def show(title: str, found: Sequence[Found]) -> None:
    """A table with a row for each level, model (unlearned, base, ignorant) and measure, by role and query."""
    roles = dict.fromkeys(role for _, own in found for role in own.about["roles"])
    columns = [(role, query) for role in roles for query in QUERIES]
    rows = [
        (planned.name, planned.attack.told(float(level)), label, MEASURES[measure][0], figures)
        for planned, own in found
        for level in own.found
        for label, stages in {"unlearned": own.found, **own.others}.items()
        for measure in MEASURES
        if (figures := role_means(stages.get(level, {}), own.about["roles"], label, measure))
    ]
    shown = [column for column in columns if any(column in figures for *_, figures in rows)]
    table = Table(title=f"Attacks, {title}", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("attack", "level", "model", "measure"):
        table.add_column(name)
    for role, query in shown:
        table.add_column(f"{role} {query}", justify="right")
    scale = {name: (factor, digits) for name, factor, digits in MEASURES.values()}
    for *named, measure, figures in rows:
        factor, digits = scale[measure]
        cells = (f"{factor * figures[c]:.{digits}f}" if c in figures else "" for c in shown)
        table.add_row(*named, measure, *cells)
    console.print(table)
