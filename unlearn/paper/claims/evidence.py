"""Evidence for claims: linear combinations of accuracies, for each seed and question.

What has to be chosen, such as the best nu, is chosen for each seed from the *other* seeds and on one half of the
questions (`CHOOSING`), and measured in that seed on the other half (`MEASURING`): else chance alone would make the best
of several look better than it is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from unlearn.analysis.collect import Run
from unlearn.analysis.compare import differing_questions
from unlearn.analysis.report.answers import (
    Answers,
    Words,
    by_item,
    by_ngram,
    by_word,
    inserted_words,
    mean_maxlogit,
    mean_of,
    places,
    spread_by_item,
    weighted,
)
from unlearn.analysis.report.choose import family
from unlearn.analysis.report.material import Material
from unlearn.analysis.settings import Setting
from unlearn.paper.claims.contrasts import Contrast, contrast, judged_by, over_ngrams
from unlearn.paper.claims.text_measures import run_rows
from unlearn.paper.phases import turning_points
from unlearn.records.names import NGRAM_QUERIES
from unlearn.records.samples import Sample
from unlearn.records.scores import role_means
from unlearn.statistics.intervals import correlation

CHOOSING, MEASURING = "choosing", "measuring"  # halves of the questions
BLOCK = 4  # questions in a row that go to one half; the embedded world asks about a forgotten fact four times in a row
FEWEST = 2  # seeds
LAYER = "model.layer"
LACKING = f"fewer than {FEWEST} seeds have all that it needs"
TINY = 1e-9  # a spread below which there is none
BOTH = ("unlearned", "base")


@dataclass(frozen=True)
class Term:
    """A weight times the accuracy of a setting's models in one role and kind of query."""

    weight: float
    setting: Setting
    role: str
    query: str
    model: str = "unlearned"


Terms = Sequence[Term] | Callable[[int], Sequence[Term]]  # of all seeds, or of each


@dataclass(frozen=True)
class Subject:
    """A method that is judged: its model without RNA, and those that differ from it in nu, c or beta, or l alone."""

    evidence: Evidence
    method: str
    plain: Setting
    by_nu: dict[float, Setting]  # nu > 0 -> setting
    by_coefficient: dict[float, Setting]  # without RNA
    coefficient: str  # "c" or "beta"
    by_layer: dict[float, Setting]  # without RNA

    def shared(self, setting: Setting) -> set[int]:
        """The common seeds of a setting and the one without RNA."""
        runs_of = self.evidence.material.runs_of
        return set(runs_of(setting)) & set(runs_of(self.plain))

    @cached_property
    def compared(self) -> dict[float, Setting]:
        """Those of `by_nu` with enough seeds."""
        return {nu: setting for nu, setting in self.by_nu.items() if len(self.shared(setting)) >= FEWEST}

    @property
    def too_few(self) -> set[Setting]:
        """Those of `by_nu` without enough seeds."""
        return set(self.by_nu.values()) - set(self.compared.values())

    @cached_property
    def seeds(self) -> set[int]:
        """Those that all compared nu have."""
        seeds_of_nu = [self.shared(setting) for setting in self.compared.values()]
        return set.intersection(*seeds_of_nu) if seeds_of_nu else set()

    def curve(self, role: str, query: str, seed: int) -> dict[float, float]:
        """nu -> accuracy in percent, over the other seeds, on the choosing half; NaN where that was not asked."""
        others = self.seeds - {seed}
        return {
            nu: mean(self.evidence.accuracy(setting, other, role, query) for other in others) if others else math.nan
            for nu, setting in self.compared.items()
        }

    @cached_property
    def best_nu(self) -> dict[int, float]:
        """For each seed, the nu with the highest accuracy on retained (perturbed) minus forgotten questions."""
        best = {}
        for seed in self.own_seeds:
            retained, forgotten = self.curve("retain", "perturbed", seed), self.curve("forget", "default", seed)
            forgotten = {nu: 0.0 if math.isnan(value) else value for nu, value in forgotten.items()}
            scores = {nu: value - forgotten[nu] for nu, value in retained.items() if not math.isnan(value)}
            if scores:
                best[seed] = max(scores, key=scores.__getitem__)
        return best

    def rna(self, seed: int) -> Setting | None:
        """The setting of the best nu."""
        return self.compared[self.best_nu[seed]] if seed in self.best_nu else None

    @cached_property
    def usual_nu(self) -> float | None:
        """The nu that most of the shared seeds choose."""
        chosen = Counter(nu for seed, nu in self.best_nu.items() if seed in self.seeds)
        return chosen.most_common(1)[0][0] if chosen else None

    @cached_property
    def phases(self) -> dict[int, tuple[Setting, Setting, Setting]]:
        """For each seed the settings where robustness peaks, is lowest after that, and of the largest nu."""
        settings = {}
        for seed in self.own_seeds:
            curve = pd.Series(self.curve("retain", "perturbed", seed))
            if len(curve) > 2 and curve.notna().all():
                peak, trough = turning_points(curve)
                settings[seed] = self.compared[peak], self.compared[trough], self.compared[curve.index[-1]]
        return settings

    @property
    def own_seeds(self) -> list[int]:
        """Those of the model without RNA."""
        return sorted(self.evidence.material.runs_of(self.plain))


@dataclass(frozen=True)
class Evidence:
    """The runs that claims are judged by: those of `material`'s world."""

    material: Material
    # By the run's folder: (role, query, model) -> CHOOSING, MEASURING, a measure of MaxLogit -> values; or "words".
    _read: dict[Path, dict[tuple[str, str, str], dict[str, Any]]] = field(default_factory=dict)

    @cached_property
    def subjects(self) -> list[Subject]:
        """The methods that have models without RNA and with it, alike in all else."""
        about = self.material.about
        done = about[(about["status"] == "done") & (about["world"] == self.material.world)]
        by_method = {str(method): rows for method, rows in done.groupby("method", sort=False)}
        return [s for method, rows in by_method.items() if (s := self._subject(method, rows)) is not None]

    def _subject(self, method: str, done: pd.DataFrame) -> Subject | None:
        """Of one method's runs. Where several c or layers have RNA, the one with most runs, whatever came of them.

        The report shows the one that did best. Here it would be chosen by what it is to be judged by.
        """
        of_method = done.drop_duplicates("setting")
        plains = {family(s): s for s in reversed(list(of_method["setting"][of_method["nu"] == 0]))}
        noisy = done[done["nu"] > 0].drop_duplicates(["setting", "seed"])
        families = [s.without("rna.nu") for s in noisy["setting"] if family(s) in plains]
        if not families:
            return None
        largest_family = Counter(families).most_common(1)[0][0]
        noisy = noisy[[s.without("rna.nu") == largest_family for s in noisy["setting"]]].drop_duplicates("setting")
        noisy = noisy.sort_values("nu")
        plain = plains[family(noisy["setting"].iloc[0])]
        numeric = [str(key) for key in of_method if is_numeric_dtype(of_method[key]) and of_method[key].notna().all()]
        curves = {k: _along(k, plain, of_method["setting"]) for k in numeric if k.startswith("method.")}
        key = max(curves, key=lambda k: len(curves[k]), default="")
        by_nu = dict(zip(noisy["nu"], noisy["setting"], strict=True))
        by_layer = _along(LAYER, plain, of_method["setting"])
        return Subject(self, method, plain, by_nu, curves.get(key, {}), key.removeprefix("method."), by_layer)

    @cached_property
    def text_rows(self) -> pd.DataFrame:
        """What was measured of each run on held-out texts (`run_rows`)."""
        return run_rows(self.material)

    def combine(self, terms: Terms) -> Contrast:
        """The sum of terms, in points, over the seeds and the questions of the measuring half that all of them have."""
        sums = []
        for seed in sorted(int(seed) for seed in self.material.about["seed"].dropna().unique()):
            parts = terms(seed) if callable(terms) else terms
            runs = [self.material.runs_of(term.setting).get(seed) for term in parts]
            complete = [run for run in runs if run is not None]
            if not parts or len(complete) < len(parts):
                continue
            if (why := _asked_otherwise(parts, complete)) is not None:
                return Contrast(why_not=why)
            sides = [self._values(run, t, MEASURING) for run, t in zip(complete, parts, strict=True)]
            if all(any(side.values()) for side in sides):
                total = weighted([term.weight for term in parts], sides)
                sums.append(by_word(total, self._words(list(zip(complete, parts, strict=True)))))
        if len(sums) < FEWEST:
            return Contrast(why_not=LACKING)
        return contrast(sums, "questions, facts or words", 100)

    def accuracy(self, setting: Setting, seed: int, role: str, query: str) -> float:
        """Of one model on the choosing half, in percent: the mean over the role's tasks; NaN if it was not asked."""
        run = self.material.runs_of(setting).get(seed)
        side = {} if run is None else self._values(run, Term(1.0, setting, role, query), CHOOSING)
        return 100 * mean_of(side) if any(side.values()) else math.nan

    def over_ngrams(self, setting: Setting, weights: Mapping[str, float]) -> Contrast:
        """The weighted sum over kinds of n-gram of a setting's accuracy less the base model's, in points.

        Over its seeds and the n-grams in the retain role's questions of the measuring half.
        """
        by_seed = []
        for run in self.material.runs_of(setting).values():
            less_base: Answers = {}
            for query in weights:
                sides = [self._values(run, Term(1, setting, "retain", query, model), MEASURING) for model in BOTH]
                less_base |= weighted([1, -1], sides)
            if less_base.keys() == weights.keys():
                by_seed.append(less_base)
        if len(by_seed) < FEWEST:
            return Contrast(why_not=LACKING)
        return over_ngrams(by_seed, weights, 100)

    def of_metrics(self, setting: Setting, name: str) -> Contrast:
        """A measure of a setting's MaxLogit, under perturbation, of the retain role, less the base model's."""
        terms = [Term(1, setting, "retain", "perturbed"), Term(-1, setting, "retain", "perturbed", "base")]
        runs = self.material.runs_of(setting).values()
        differences = [weighted([1, -1], [self._values(run, term, name) for term in terms]) for run in runs]
        measured = [values for values in differences if values]
        if len(measured) < FEWEST:
            return Contrast(why_not=f"fewer than {FEWEST} seeds have MaxLogit (eval.maxlogit)")
        return contrast(measured, "questions or facts")

    def correlation(self, settings: Sequence[Setting], name: str) -> Contrast:
        """Pearson's r of TASK/perturbed/`name` and of what perturbation costs, of the retain role, over all models.

        Within settings: of each value the mean over its setting's models is taken off, as methods (and layers) differ
        in both for reasons of their own. The interval is Fisher's, with a degree of freedom less for each mean.
        """
        rows = [(i, run) for i, setting in enumerate(settings) for run in self.material.runs_of(setting).values()]
        table = pd.DataFrame(
            {
                "setting": i,
                "x": _metric(run, "unlearned", "perturbed", name),
                "y": _metric(run, "unlearned", "default", "acc") - _metric(run, "unlearned", "perturbed", "acc"),
            }
            for i, run in rows
        ).dropna()
        groups = table.groupby("setting")
        within = table[["x", "y"]] - groups[["x", "y"]].transform("mean")
        size = np.linalg.norm(within, axis=0)
        freedom = len(table) - len(groups) - 2  # Fisher's n - 3, of a partial correlation
        if freedom < 1 or size.min() < TINY:
            return Contrast(why_not="too few models that differ have MaxLogit (eval.maxlogit)")
        r = float(np.clip(within["x"] @ within["y"] / size.prod(), -1, 1))
        return judged_by(partial(correlation, r, freedom), len(table), f"{len(table)} models")

    def _values(self, run: Run, term: Term, what: str) -> Answers:
        """A run's answers on a half of the questions, or its MaxLogits, by item."""
        return self._of(run).get((term.role, term.query, term.model), {}).get(what, {})

    def _words(self, sides: Sequence[tuple[Run, Term]]) -> Words:
        """The forget-tokens of these answers, or else the words of the first kind of query that has any."""
        asked = sorted(sides, key=lambda side: side[1].query != "perturbed")
        words = (self._of(run).get((t.role, t.query, t.model), {}).get("words", {}) for run, t in asked)
        return next((of_query for of_query in words if of_query), {})

    def _of(self, run: Run) -> dict[tuple[str, str, str], dict[str, Any]]:
        """A run's answers, read once."""
        if run.folder not in self._read:
            self._read[run.folder] = {place: _by_item(own) for place, own in places(self.material, run).items()}
        return self._read[run.folder]


def _by_item(samples: Sequence[tuple[str, Sample]]) -> dict[str, Any]:
    halves = {half: [s for s in samples if s[1].id // BLOCK % 2 == i] for i, half in enumerate((CHOOSING, MEASURING))}
    by = by_ngram if samples[0][1].query in NGRAM_QUERIES else by_item
    values = {half: by(own, lambda s: None if s.correct is None else s.correct) for half, own in halves.items()}
    return {
        **values,
        "maxlogit_mean": by_item(samples, mean_maxlogit),
        "maxlogit_std": spread_by_item(samples),
        "words": inserted_words(samples),
    }


def _metric(run: Run, model: str, query: str, measure: str) -> float:
    """The mean over the retain role's tasks; NaN where one lacks it."""
    return role_means(run.scores, measure, model=model).get(("retain", query), math.nan)


def _along(key: str, plain: Setting, settings: Iterable[Setting]) -> dict[float, Setting]:
    """Those that differ from `plain` in nothing but one key, by its value."""
    alike = [setting for setting in settings if setting.without(key) == plain.without(key)]
    return {setting.get(key): setting for setting in sorted(alike, key=lambda setting: setting.get(key))}


def _asked_otherwise(terms: Sequence[Term], runs: Sequence[Run]) -> str | None:
    """Why the answers to a kind of query cannot be paired, if so."""
    first: dict[tuple[str, str], Run] = {}
    for term, run in zip(terms, runs, strict=True):
        other = first.setdefault((term.role, term.query), run)
        why = differing_questions(other, run, term.query, term.role)
        if why is not None:
            return why
    return None
