"""The strongest of an attack's settings and levels: what each half of the items chooses, and the other says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unlearn.attacks.results import AttackResults
from unlearn.records.attacks import NOT_ATTACKED, UNLEARNED, variant_names
from unlearn.records.scores import role_means
from unlearn.records.strongest import UNITS, Candidate, candidate, chosen_on, judged


@dataclass(frozen=True)
class Strongest:
    """The strongest of an attack's settings and levels.

    Args:
        attack: its name.
        unit: "points" or "nats".
        of: how many settings and levels there are.
        picks: what each half chose, in words; None if none was within the bound.
        known: the unlearned model's accuracy (a share) or nats a token on what was to be forgotten, as judged.
    """

    attack: str
    unit: str
    of: int
    picks: Sequence[str | None]
    known: float

    @property
    def in_words(self) -> str:
        """What each half chose."""
        halves = [pick or "nothing within the bound" for pick in self.picks]
        return f"{self.attack}, {self.unit}: {' and '.join(dict.fromkeys(halves))}"


def strongest_of_each(results: Sequence[AttackResults]) -> list[Strongest]:
    """For each attack with several settings or levels, and each unit. Those without halves are left out."""
    plain = next((of for of in results if of.about.attack == NOT_ATTACKED), None)
    if plain is None:
        return []
    names = variant_names([(of.about.attack, of.about.arguments) for of in results])
    variants: dict[str, list[tuple[str, AttackResults]]] = {}
    for name, of in zip(names, results, strict=True):
        if of is not plain:
            variants.setdefault(of.about.attack, []).append((name, of))
    found = [_strongest(attack, unit, plain, of_attack) for attack, of_attack in variants.items() for unit in UNITS]
    return [of for of in found if of is not None]


def _strongest(
    attack: str, unit: str, plain: AttackResults, variants: Sequence[tuple[str, AttackResults]]
) -> Strongest | None:
    metric, role, _, factor = UNITS[unit]
    before = role_means(plain.scores(0), metric, model=UNLEARNED).get((role, "default"))
    made: dict[str, tuple[Candidate, float | None]] = {}
    for name, of in variants:
        bound = of.about.arguments.get("bound")
        most = float(bound) if isinstance(bound, (int, float)) else None
        for level, level_name in dict.fromkeys((row.level, row.level_name) for row in of.rows):
            of_level = candidate(of.scores(level), plain.scores(0), unit)
            if of_level is not None:
                made[f"{name}, {level_name}"] = of_level, most
    if before is None or len(made) < 2:
        return None
    candidates, bounds = [of for of, _ in made.values()], [bound for _, bound in made.values()]
    picks = [chosen_on(half, candidates, bounds) for half in (0, 1)]
    known = before + judged(candidates, picks) / factor
    return Strongest(attack, unit, len(made), [None if pick is None else list(made)[pick] for pick in picks], known)
