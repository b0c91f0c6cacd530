"""What claims are judged by: linear combinations of accuracies, for each seed and question, on one half of the facts.

Whatever has to be chosen, such as the best nu, is chosen on the other half (`CHOOSING`) and then measured here
(`MEASURING`), so that no number is the best of several on the questions that it is of.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from unlearn.report.choose import Chosen, family
from unlearn.report.contrasts import Answers, Contrast, answers, contrast, over_seeds
from unlearn.report.frames import is_number, without
from unlearn.report.material import Material

CHOOSING, MEASURING = 0, 1  # halves of the facts
BLOCK = 4  # questions in a row that go to one half; the embedded world asks about a forgotten fact four times in a row


@dataclass(frozen=True)
class Term:
    """A weight times the accuracy of a setting's models (see `unlearn.report.frames`) in one role and kind of query."""

    weight: float
    setting: str
    role: str
    query: str
    model: str = "unlearned"


@dataclass(frozen=True)
class Subject:
    """A method on its trial: its model without RNA, and what differs from that in nothing but nu, or c or beta."""

    evidence: Evidence
    method: str
    plain: str
    by_nu: dict[float, str]  # nu > 0 -> setting
    by_coefficient: dict[float, str]  # without RNA
    coefficient: str  # "c" or "beta"

    @cached_property
    def common_seeds(self) -> set[int]:
        """The seeds that every nu has: with them nu are compared."""
        return set.intersection(*(set(self.evidence.material.runs_of(setting)) for setting in self.by_nu.values()))

    def curve(self, role: str, query: str) -> dict[float, float]:
        """nu -> mean accuracy over the common seeds on the choosing half of the facts, in percent."""
        return {
            nu: self.evidence.combine([Term(1.0, setting, role, query)], CHOOSING, self.common_seeds).difference
            for nu, setting in self.by_nu.items()
        }

    @cached_property
    def best_nu(self) -> float:
        """The nu with most retained knowledge under perturbation less forgotten knowledge, on the choosing half."""
        retained, forgotten = self.curve("retain", "perturbed"), self.curve("forget", "default")
        return max(self.by_nu, key=lambda nu: retained[nu] - forgotten[nu])

    @property
    def rna(self) -> str:
        """The setting of the best nu."""
        return self.by_nu[self.best_nu]


@dataclass(frozen=True)
class Evidence:
    """The runs that claims are judged by: those of `material`'s world."""

    material: Material

    @cached_property
    def subjects(self) -> list[Subject]:
        """The methods that have models without RNA and with it."""
        return [self._subject(c, c.plain) for c in self.material.chosen if c.plain is not None and c.rna is not None]

    def _subject(self, choice: Chosen, plain: str) -> Subject:
        about = self.material.about
        done = about[(about["status"] == "done") & (about["world"] == self.material.world)]
        of_method = done[done["method"] == choice.method].drop_duplicates("setting")
        alike = of_method[[family(setting) == family(plain) for setting in of_method["setting"]]]
        noisy = alike[alike["nu"] > 0].sort_values("nu")
        argument = next(k for k, v in json.loads(plain)[0]["method"].items() if is_number(v))
        key = f"method.{argument}"
        common = without(plain, key)
        curve = of_method[[without(setting, key) == common for setting in of_method["setting"]]].sort_values(key)
        return Subject(
            self,
            choice.method,
            plain,
            dict(zip(noisy["nu"], noisy["setting"], strict=True)),
            dict(zip(curve[key], curve["setting"], strict=True)),
            argument,
        )

    def combine(self, terms: Sequence[Term], half: int = MEASURING, seeds: Collection[int] | None = None) -> Contrast:
        """The sum of terms, in points, over the seeds (of `seeds`) and the questions that all of them have."""
        runs = [self.material.runs_of(term.setting) for term in terms]
        common = set.intersection(*(set(found) for found in runs))
        pairs = []
        for seed in sorted(common if seeds is None else common & set(seeds)):
            sides = [
                answers(self.material, found[seed], term.role, term.query, term.model)
                for term, found in zip(terms, runs, strict=True)
            ]
            if all(sides):
                total = _sum([term.weight for term in terms], [_of_half(side, half) for side in sides])
                pairs.append(({task: dict.fromkeys(values, 0.0) for task, values in total.items()}, total))
        if len(pairs) < 2:
            return Contrast(why_not=f"{len(pairs)} seeds were asked all of it, two are needed")
        return contrast(pairs)

    def of_metrics(self, terms: Iterable[tuple[float, str, str]], name: str) -> Contrast:
        """The sum of weight times the retain role's mean of TASK/perturbed/`name`, of (weight, setting, model)."""
        terms = list(terms)
        runs = [self.material.runs_of(setting) for _, setting, _ in terms]
        values = []
        for seed in sorted(set.intersection(*(set(found) for found in runs))):
            total = 0.0
            for (weight, _, model), found in zip(terms, runs, strict=True):
                run = found[seed]
                keys = [f"{model}/{task}/perturbed/{name}" for task in run.roles.get("retain", [])]
                if not keys or not all(key in run.metrics for key in keys):
                    break
                total += weight * sum(run.metrics[key] for key in keys) / len(keys)
            else:
                values.append(total)
        if not values:
            return Contrast(why_not="MaxLogit was not measured (eval.maxlogit)")
        return over_seeds(values)


def _of_half(side: Answers, half: int) -> Answers:
    """Those of one half of the facts."""
    return {
        task: {(part, q): v for (part, q), v in values.items() if q // BLOCK % 2 == half}
        for task, values in side.items()
    }


def _sum(weights: Sequence[float], sides: Sequence[Answers]) -> Answers:
    """Weighted, over the questions that all sides have."""
    total: Answers = {}
    for task in [task for task in sides[0] if all(task in side for side in sides)]:
        questions = set.intersection(*(set(side[task]) for side in sides))
        total[task] = {q: sum(w * side[task][q] for w, side in zip(weights, sides, strict=True)) for q in questions}
    return total
