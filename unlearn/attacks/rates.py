"""Which of several learning rates each half of the items chooses, and what the other half then says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from unlearn.attacks.results import AttackResults
from unlearn.records.attacks import NOT_ATTACKED, UNLEARNED
from unlearn.records.rates import UNITS, candidate, chosen_on, judged, without_choice
from unlearn.records.scores import role_means


@dataclass(frozen=True)
class Choice:
    """At one level of an attack: the candidates that the halves chose, and what is known under the chosen ones.

    Args:
        attack: its name.
        candidates: the results of all rates.
        unit: "points" or "nats".
        picks: of each half, the chosen one's number; None if none was within the bound.
        known: the unlearned model's accuracy (a share) or nats a token on what was to be forgotten, as judged.
    """

    attack: str
    candidates: Sequence[AttackResults]
    level_name: str
    unit: str
    picks: Sequence[int | None]
    known: float

    @property
    def rates(self) -> list[float | None]:
        """The learning rate that each half chose."""
        return [None if pick is None else _number(self.candidates[pick], "lr") for pick in self.picks]


def choices(results: Sequence[AttackResults]) -> list[Choice]:
    """Of each attack with several learning rates, level and unit. Levels that one of them lacks are left out."""
    plain = [of for of in results if of.about.attack == NOT_ATTACKED]
    groups: dict[str, list[AttackResults]] = {}
    for of in results:
        if "lr" in of.about.arguments:
            same = json.dumps([of.about.attack, of.about.questions, without_choice(of.about.arguments)])
            groups.setdefault(same, []).append(of)
    return [choice for group in groups.values() if plain and len(group) > 1 for choice in _choices(group, plain[0])]


def _choices(group: Sequence[AttackResults], plain: AttackResults) -> list[Choice]:
    listed, without = [], plain.scores(0)
    bounds = [_number(of, "bound") for of in group]
    for level, name in dict.fromkeys((row.level, row.level_name) for row in group[0].rows):
        for unit, (metric, role, _, factor) in UNITS.items():
            made = [candidate(of.scores(level), without, unit) for of in group]
            found = [of for of in made if of is not None]
            before = role_means(without, metric, model=UNLEARNED).get((role, "default"))
            if before is not None and len(found) == len(group):
                picks = [chosen_on(half, found, bounds) for half in (0, 1)]
                known = before + judged(found, picks) / factor
                listed.append(Choice(group[0].about.attack, group, name, unit, picks, known))
    return listed


def _number(results: AttackResults, key: str) -> float | None:
    value = results.about.arguments.get(key)
    return float(value) if isinstance(value, (int, float)) else None


def keep_choices(results: Sequence[AttackResults]) -> None:
    """Write into attack.json of each candidate which rates were chosen."""
    chosen: dict[int, dict[str, dict[str, list[float | None]]]] = {}
    for choice in choices(results):
        for of in choice.candidates:
            chosen.setdefault(id(of), {}).setdefault(choice.level_name, {})[choice.unit] = choice.rates
    for of in results:
        if id(of) in chosen:
            of.about = replace(of.about, chosen=chosen[id(of)])
            of.write()
