"""The paper's claims about what is measured, and the rule that judges them.

A claim is about one number, its effect. It is *seen* if the whole 95 % interval of the mean over seeds lies where the
claim says, *contrary* if the whole interval lies where it does not, and else *not seen*. The rule knows no sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from unlearn.claims.evidence import Subject, Term
from unlearn.report.contrasts import Contrast

SAME = 5.0  # points: what counts as "stays the same"
GRAMS = (2, 4, 8, 16)
SEEN, NOT_SEEN, CONTRARY, NOT_MEASURED = "seen", "not seen", "contrary", "not measured"


@dataclass(frozen=True)
class Claim:
    """What the paper says and where; `measured` names the effect, which is claimed to be above `above` or below
    `below`."""

    says: str
    place: str
    measured: str
    effect: Callable[[Subject], Contrast | str]  # or why there is nothing to see
    above: float = -math.inf
    below: float = math.inf
    unit: str = "points"

    def verdict(self, effect: Contrast | str) -> str:
        """SEEN, NOT_SEEN, CONTRARY or NOT_MEASURED."""
        if isinstance(effect, str):
            return NOT_SEEN
        if math.isnan(effect.seeds_low):
            return NOT_MEASURED
        if self.above < effect.seeds_low and effect.seeds_high < self.below:
            return SEEN
        return CONTRARY if effect.seeds_high < self.above or effect.seeds_low > self.below else NOT_SEEN


def _retain(weight: float, setting: str, query: str, model: str = "unlearned") -> Term:
    return Term(weight, setting, "retain", query, model)


def stumble(s: Subject) -> Contrast:
    """How much more perturbation costs the model without RNA than the base model."""
    drop = [_retain(1, s.plain, "default"), _retain(-1, s.plain, "perturbed")]
    of_base = [_retain(-1, s.plain, "default", "base"), _retain(1, s.plain, "perturbed", "base")]
    return s.evidence.combine([*drop, *of_base])


def stumble_with_rna(s: Subject) -> Contrast:
    """The same with RNA."""
    drop = [_retain(1, s.rna, "default"), _retain(-1, s.rna, "perturbed")]
    of_base = [_retain(-1, s.rna, "default", "base"), _retain(1, s.rna, "perturbed", "base")]
    return s.evidence.combine([*drop, *of_base])


def harm_of_control(s: Subject) -> Contrast:
    """By how much harmless words in place of forget-tokens leave more."""
    return s.evidence.combine([_retain(1, s.plain, "control"), _retain(-1, s.plain, "perturbed")])


def rna_less_plain(role: str, query: str) -> Callable[[Subject], Contrast]:
    """What RNA changes."""
    return lambda s: s.evidence.combine([Term(1, s.rna, role, query), Term(-1, s.plain, role, query)])


def by_coefficient(s: Subject) -> Contrast:
    """The least-squares slope of robustness over log2 of c or beta."""
    settings = [(math.log2(value), setting) for value, setting in s.by_coefficient.items() if value > 0]
    return _slope(s, [(x, _retain(1, setting, "perturbed")) for x, setting in settings])


def by_length(s: Subject) -> Contrast:
    """The least-squares slope of robustness over log2 of the n-gram's length."""
    return _slope(s, [(math.log2(n), _retain(1, s.plain, f"ngram-{n}")) for n in GRAMS])


def _slope(s: Subject, points: list[tuple[float, Term]]) -> Contrast:
    if len(points) < 2:
        return Contrast(why_not="fewer than two values were run")
    middle = sum(x for x, _ in points) / len(points)
    spread = sum((x - middle) ** 2 for x, _ in points)
    return s.evidence.combine([Term((x - middle) / spread, term.setting, term.role, term.query) for x, term in points])


def by_similarity(s: Subject) -> Contrast:
    """The most similar n-grams' effect less that of the least similar ones."""
    return s.evidence.combine([_retain(1, s.plain, "similarity-most"), _retain(-1, s.plain, "similarity-least")])


def decline(s: Subject) -> Contrast | str:
    """From the nu at which robustness peaks to its lowest point behind that."""
    peak, trough, _ = _phases(s)
    if peak == trough:
        return "robustness is highest at the largest nu that was run"
    return _change(s, "retain", peak, trough)


def third_phase(role: str) -> Callable[[Subject], Contrast | str]:
    """From the lowest point behind the peak to the largest nu."""

    def effect(s: Subject) -> Contrast | str:
        peak, trough, last = _phases(s)
        if trough == last:
            return "robustness is lowest at the largest nu that was run" if peak != last else "there is no decline"
        return _change(s, role, trough, last)

    return effect


def _phases(s: Subject) -> tuple[float, float, float]:
    """nu of the peak of robustness, of the lowest point from there on, and the largest; chosen on half of the facts."""
    curve = s.curve("retain", "perturbed")
    peak = max(curve, key=lambda nu: curve[nu])
    behind = {nu: value for nu, value in curve.items() if nu >= peak}
    return peak, min(behind, key=lambda nu: behind[nu]), max(curve)


def _change(s: Subject, role: str, begin: float, end: float) -> Contrast:
    terms = [Term(1, s.by_nu[end], role, "perturbed"), Term(-1, s.by_nu[begin], role, "perturbed")]
    return s.evidence.combine(terms)


def maxlogit(name: str, other: str = "base") -> Callable[[Subject], Contrast]:
    """A figure of MaxLogit under perturbation: without RNA less that of the base model or ("rna") of the RNA model."""

    def effect(s: Subject) -> Contrast:
        beside = (-1.0, s.rna, "unlearned") if other == "rna" else (-1.0, s.plain, "base")
        return s.evidence.of_metrics([(1.0, s.plain, "unlearned"), beside], name)

    return effect


CLAIMS = (
    Claim(
        "A forget-token in a harmless question makes RM models stumble.",
        "section 6.4, Figure 1",
        "retain: default less perturbed, beyond the base model's own",
        stumble,
        above=0,
    ),
    Claim(
        "It is the forget-token that does it: other words do less harm.",
        "section 3.2",
        "retain: control less perturbed",
        harm_of_control,
        above=0,
    ),
    Claim(
        "RNA makes RM models more robust.",
        "section 6.4, Figure 1; phase I of section 6.6",
        "retain, perturbed: with RNA less without",
        rna_less_plain("retain", "perturbed"),
        above=0,
    ),
    Claim(
        "RNA keeps what was forgotten forgotten.",
        "section 6.4, Figure 1",
        f"forget, default: with RNA less without, to be within {SAME:g} points",
        rna_less_plain("forget", "default"),
        above=-SAME,
        below=SAME,
    ),
    Claim(
        "RNA improves retained knowledge, too.",
        "abstract, section 6.4",
        "retain, default: with RNA less without",
        rna_less_plain("retain", "default"),
        above=0,
    ),
    Claim(
        "RNA helps where retained knowledge is close to what is forgotten.",
        "section 6.4, Table 1",
        "near, perturbed: with RNA less without",
        rna_less_plain("near", "perturbed"),
        above=0,
    ),
    Claim(
        "The larger c or beta, the less robust.",
        "section 6.5, Figure 2",
        "retain, perturbed: slope, without RNA",
        by_coefficient,
        below=0,
        unit="points for each doubling",
    ),
    Claim(
        "Too large a noise scale costs robustness.",
        "section 6.6, Figure 3, phase II",
        "retain, perturbed: at the lowest point behind the peak less at the peak",
        decline,
        below=0,
    ),
    Claim(
        "With a larger one still, retained knowledge comes back ...",
        "section 6.6, Figure 3, phase III",
        "retain, perturbed: at the largest nu less at the lowest point",
        third_phase("retain"),
        above=0,
    ),
    Claim(
        "... and forgotten knowledge with it.",
        "section 6.6, Figure 3, phase III",
        "forget, perturbed: at the largest nu less at retained knowledge's lowest point",
        third_phase("forget"),
        above=0,
    ),
    Claim(
        "RM models are less sure than the base model under perturbation.",
        "section 6.3, Figure 1",
        "mean MaxLogit of the retain role: without RNA less base",
        maxlogit("maxlogit_mean"),
        below=0,
        unit="logits",
    ),
    Claim(
        "Their MaxLogit is more concentrated than the base model's.",
        "section 6.3, Figure 1",
        "standard deviation of MaxLogit: without RNA less base",
        maxlogit("maxlogit_std"),
        below=0,
        unit="logits",
    ),
    Claim(
        "N-grams more similar to their documents do more harm.",
        "section 6.7, Figure 4",
        "retain: similarity-most less similarity-least, without RNA",
        by_similarity,
        below=0,
    ),
    Claim(
        "Longer n-grams do more harm.",
        "section 6.7, Figure 4",
        "retain: slope over n of 2, 4, 8 and 16, without RNA",
        by_length,
        below=0,
        unit="points for each doubling",
    ),
)
