"""The results of attacks, on the screen: what was to be forgotten first, and as many columns as fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table

from unlearn.attacks.results import AttackResults
from unlearn.attacks.strongest import Strongest, strongest_of_each
from unlearn.records.attacks import BASE, RETRAINED, UNLEARNED, levels_not_finite, variant_names
from unlearn.records.names import text_role
from unlearn.records.scores import Score, not_finite, role_means
from unlearn.records.strongest import UNITS
from unlearn.screen import console, say

QUERIES = ("default", "perturbed")  # the kinds of query of a run that are asked under attack
# (role, measure) -> a change from the base model that is next to none.
LITTLE = {("forget", "acc"): -0.03, (text_role("forget"), "nats"): 0.1}
NAN = "NaN"
JUDGED = "judged"  # in the place of a level
GAP = 3  # characters between two columns


@dataclass(frozen=True)
class Column:
    """A figure of a level: a role's mean of a measure in a query, of a model."""

    role: str
    measure: str  # "acc" or "nats"
    query: str
    model: str

    @property
    def header(self) -> str:
        """Two lines: what is measured; the model if it is not the unlearned one, and the query if not the default."""
        unit = "%" if self.measure == "acc" else "nats"
        parts = [self.model if self.model != UNLEARNED else "", self.query if self.query != "default" else ""]
        return f"{self.role} {unit}\n{' '.join(part for part in parts if part)}"

    @property
    def width(self) -> int:
        """Characters."""
        return max(map(len, self.header.split("\n")))

    def cell(self, scores: Sequence[Score]) -> str:
        """The figure, NaN if answers were not finite, or nothing if these scores do not have it."""
        value = role_means(scores, self.measure, model=self.model).get((self.role, self.query))
        if value is None:
            place = self.model, self.role, self.query
            is_asked = any((s.model, s.role, s.query) == place for s in not_finite(scores))
            return NAN if is_asked and (self.measure == "nats") is self.role.endswith(text_role("")) else ""
        return self.in_words(value)

    def in_words(self, value: float) -> str:
        """A figure in its unit."""
        return f"{100 * value:.1f}" if self.measure == "acc" else f"{value:.2f}"

    def of_strongest(self, strongest: Strongest) -> str:
        """The judged figure, if it is this column's."""
        metric, role, _, _ = UNITS[strongest.unit]
        is_its = (self.role, self.measure, self.query, self.model) == (role, metric, "default", UNLEARNED)
        return self.in_words(strongest.known) if is_its else ""


def nothing_forgotten(not_attacked: AttackResults) -> bool:
    """Whether the unlearned model, without an attack, answers what was to be forgotten about as the base model does."""
    scores = not_attacked.scores(0)
    changes = []
    for (role, measure), little in LITTLE.items():
        unlearned, base = (
            role_means(scores, measure, model=model).get((role, "default")) for model in (UNLEARNED, BASE)
        )
        if unlearned is not None and base is not None:
            changes.append((unlearned - base) / little)
    return bool(changes) and max(changes) <= 1


def problem(results: Sequence[AttackResults]) -> str | None:
    """A sentence on the first level at which answers were not finite; None if all were."""
    sentences = levels_not_finite(row for of_attack in results for row in of_attack.rows)
    if not sentences:
        return None
    return sentences[0] + (f" {len(sentences) - 1} more levels have such answers." if len(sentences) > 1 else "")


def show(title: str, results: Sequence[AttackResults]) -> None:
    """A table with a row for each level of each attack."""
    names = variant_names([(of_attack.about.attack, of_attack.about.arguments) for of_attack in results])
    scores = {
        (name, row.level_name): of_attack.scores(row.level)
        for name, of_attack in zip(names, results, strict=True)
        for row in of_attack.rows
    }
    judged = strongest_of_each(results)
    columns = [column for column in _columns(results) if any(map(column.cell, scores.values()))]
    shown_names = [*scores, *((judged_name(of), JUDGED) for of in judged)]
    names_width = sum(max(len(name[i]) for name in shown_names) + GAP for i in (0, 1))
    shown = _fitting(columns, console.width - names_width)
    table = Table(title=f"Attacks on {title}", box=SIMPLE_HEAD, pad_edge=False, title_justify="left")
    table.add_column("attack", no_wrap=True)
    table.add_column("level", no_wrap=True)
    for column in shown:
        table.add_column(column.header, justify="right", no_wrap=True)
    for attack, level in scores:
        table.add_row(attack, level, *(column.cell(scores[attack, level]) for column in shown))
    for of in judged:
        table.add_row(judged_name(of), JUDGED, *(column.of_strongest(of) for column in shown))
    console.print(table)
    if judged:
        say(f"{JUDGED}: chosen on one half of the questions or texts and measured on the other, both ways. Chosen:")
        for of in judged:
            say(f"  {of.in_words}")
    say("Columns without a model's name are of the unlearned model; base: the base model under the same attack.")
    if any(column.cell(of_level) == NAN for column in shown for of_level in scores.values()):
        say(f'{NAN}: answers that are not finite, which scores.parquet counts (measure "not_finite").')
    if len(shown) < len(columns):
        say(f"{len(columns) - len(shown)} more columns do not fit here; scores.parquet of each attack has all.")


def judged_name(of: Strongest) -> str:
    """The name of a row of judged figures."""
    return f"{of.attack}, strongest of {of.of}"


def _columns(results: Sequence[AttackResults]) -> Iterator[Column]:
    """All columns that the results may have, what was to be forgotten first."""
    roles = list(dict.fromkeys(row.score.role for of_attack in results for row in of_attack.rows))
    forget = [(role, measure) for role, measure in LITTLE if role in roles]
    for role, measure in forget:
        yield from (Column(role, measure, "default", model) for model in (UNLEARNED, BASE, RETRAINED))
    other = [(role, measure) for role in roles for measure in ("acc", "nats") if (role, measure) not in forget]
    yield from (Column(role, measure, query, UNLEARNED) for role, measure in other for query in QUERIES)
    yield from (Column(role, measure, "perturbed", UNLEARNED) for role, measure in forget)


def _fitting(columns: Sequence[Column], width: int) -> list[Column]:
    """The first columns, as many as fit into so many characters."""
    fitting: list[Column] = []
    for column in columns:
        width -= column.width + GAP
        if width < 0:
            break
        fitting.append(column)
    return fitting
