"""The paper's claims about what is measured, and the rule that judges them.

A claim is about one number, its effect. It is *seen* if the whole 95 % interval lies where the claim says, *contrary*
if the whole interval lies where it does not, and else *not seen*. The rule knows no sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unlearn.analysis.settings import Setting
from unlearn.paper.claims.contrasts import Contrast
from unlearn.paper.claims.evidence import FEWEST, Subject, Term
from unlearn.paper.claims.margins import SAME_POINTS
from unlearn.paper.theory.verdicts import CONTRARY, NOT_MEASURED, NOT_SEEN, SEEN
from unlearn.records.names import NGRAM_SIZES

NOT_IN_PAPER = "not asked in the paper"  # the place of a claim of this project
DIGITS = 9  # beyond that, a difference is the arithmetic's


@dataclass(frozen=True)
class Claim:
    """A claim of the paper and its section. `measured` names the effect, said to be above `above` or below `below`."""

    says: str
    place: str
    measured: str
    effect: Callable[[Any], Contrast]  # of a Subject; of held-out texts, see texts.py
    above: float = -math.inf
    below: float = math.inf
    unit: str = "points"

    def verdict(self, effect: Contrast) -> str:
        """SEEN, NOT_SEEN, CONTRARY or NOT_MEASURED."""
        if math.isnan(effect.low):
            return NOT_MEASURED
        low, high = round(effect.low, DIGITS), round(effect.high, DIGITS)
        if self.above < low and high < self.below:
            return SEEN
        return CONTRARY if high < self.above or low > self.below else NOT_SEEN

    def p(self, effect: Contrast) -> float:
        """Of the two-sided test against the bound that is nearer; NaN if the effect has no interval."""
        return max(effect.p(bound) for bound in (self.above, self.below) if math.isfinite(bound))


def _beside_base(weight: float, setting: Setting, query: str) -> list[Term]:
    """A setting's accuracy on retained knowledge minus the base model's, in the same kind of query."""
    return [Term(weight, setting, "retain", query), Term(-weight, setting, "retain", query, "base")]


def _drop(weight: float, setting: Setting) -> list[Term]:
    """The drop: default minus perturbed accuracy, minus that of the base model."""
    return [*_beside_base(weight, setting, "default"), *_beside_base(-weight, setting, "perturbed")]


def _beside(s: Subject, rna: Setting) -> list[Term]:
    """The drop without RNA, on the questions of a setting with RNA, whose terms have weight 0."""
    return [*_drop(1, s.plain), *_drop(0, rna)]


def _won_back(s: Subject, rna: Setting) -> list[Term]:
    """The drop without RNA minus the drop with RNA."""
    return [*_drop(1, s.plain), *_drop(-1, rna)]


def _with_rna(s: Subject, terms: Callable[[Setting], list[Term]]) -> Contrast:
    """A sum of terms that needs the setting with RNA, which each seed has chosen."""

    def of_seed(seed: int) -> list[Term]:
        rna = s.rna(seed)
        return [] if rna is None else terms(rna)

    return s.evidence.combine(of_seed)


def stumble(s: Subject) -> Contrast:
    """The drop of the model without RNA."""
    return s.evidence.combine(_drop(1, s.plain))


def stumble_beside_rna(s: Subject) -> Contrast:
    """The same, on the seeds and questions that the model with RNA also has."""
    return _with_rna(s, lambda rna: _beside(s, rna))


def won_back(s: Subject) -> Contrast:
    """How much smaller the drop is with RNA."""
    return _with_rna(s, lambda rna: _won_back(s, rna))


def at_nu(s: Subject, rna: Setting) -> tuple[Contrast, Contrast, Contrast]:
    """For a given setting with RNA: the drop without it, what RNA removes, and the forget accuracy."""
    remembered = [Term(1, rna, "forget", "default"), Term(-1, s.plain, "forget", "default")]
    beside, back, more = (s.evidence.combine(terms) for terms in (_beside(s, rna), _won_back(s, rna), remembered))
    return beside, back, more


def harm_of_control(s: Subject) -> Contrast:
    """How much smaller the drop is with harmless words in place of forget-tokens, beyond the base model."""
    return s.evidence.combine([*_beside_base(1, s.plain, "control"), *_beside_base(-1, s.plain, "perturbed")])


def rna_less_plain(role: str, query: str) -> Callable[[Subject], Contrast]:
    """The difference that RNA makes."""
    return lambda s: _with_rna(s, lambda rna: [Term(1, rna, role, query), Term(-1, s.plain, role, query)])


def by_coefficient(s: Subject) -> Contrast:
    """The least-squares slope of robustness over log2 of c or beta."""
    return _over(s, {math.log2(value): setting for value, setting in s.by_coefficient.items() if value > 0}, "it")


def by_layer(s: Subject) -> Contrast:
    """The least-squares slope of robustness over the layer."""
    return _over(s, s.by_layer, "the layer (sweep=layers)")


def _over(s: Subject, points: Mapping[float, Setting], what: str) -> Contrast:
    """The least-squares slope of robustness over the points that have enough seeds."""
    usable = {x: setting for x, setting in points.items() if len(s.shared(setting)) >= FEWEST}
    if len(usable) < 2:
        return Contrast(why_not=f"fewer than two values of {what} in enough seeds")
    weights = slope(list(usable))
    return s.evidence.combine(
        [Term(w, setting, "retain", "perturbed") for w, setting in zip(weights, usable.values(), strict=True)]
    )


def slope(xs: Sequence[float]) -> list[float]:
    """The weights that make values at `xs` their least-squares slope."""
    middle = sum(xs) / len(xs)
    spread = sum((x - middle) ** 2 for x in xs)
    return [(x - middle) / spread for x in xs]


def over_ngrams(weights: Mapping[str, float]) -> Callable[[Subject], Contrast]:
    """A weighted sum over kinds of n-gram of robustness, without RNA, less the base model's."""
    return lambda s: s.evidence.over_ngrams(s.plain, weights)


def between_phases(role: str, begin: int, end: int) -> Callable[[Subject], Contrast]:
    """From one of the peak (0), the lowest point (1) and the largest nu (2) to another; 0 where they are one."""

    def effect(s: Subject) -> Contrast:
        def terms(seed: int) -> list[Term]:
            phases = s.phases.get(seed)
            if phases is None:
                return []
            return [Term(1, phases[end], role, "perturbed"), Term(-1, phases[begin], role, "perturbed")]

        return s.evidence.combine(terms)

    return effect


def maxlogit(name: str) -> Callable[[Subject], Contrast]:
    """A figure of MaxLogit under perturbation, without RNA, less that of the base model."""
    return lambda s: s.evidence.of_metrics(s.plain, name)


def maxlogit_and_drop(s: Subject) -> Contrast:
    """How MaxLogit and what perturbation costs go together, over all methods' models without RNA, within methods."""
    return s.evidence.correlation([other.plain for other in s.evidence.subjects], "maxlogit_mean")


# Kinds of n-gram and their weights in a claim's effect.
BY_SIMILARITY = {"similarity-most": 1.0, "similarity-least": -1.0}
BY_LENGTH = dict(zip((f"ngram-{n}" for n in NGRAM_SIZES), slope([math.log2(n) for n in NGRAM_SIZES]), strict=True))
OVER_METHODS = Claim(
    "The less sure RM models are, the more vulnerable.",
    "section 6.3, Figure 1",
    "retain: correlation, within methods, of mean MaxLogit under perturbation with default less perturbed, without RNA",
    maxlogit_and_drop,
    below=0,
    unit="Pearson's r",
)
CLAIMS = (
    Claim(
        "A forget-token in a harmless question makes RM models stumble.",
        "section 6.4, Figure 1",
        "retain: default less perturbed, beyond the base model's",
        stumble,
        above=0,
    ),
    Claim(
        "It is the forget-token that does it: other words do less harm.",
        "a control of this project's",
        "retain: control less perturbed, beyond the base model's",
        harm_of_control,
        above=0,
    ),
    Claim(
        "RNA makes RM models more accurate under perturbation.",
        "section 6.4, Figure 1; section 6.6, phase I",
        "retain, perturbed: with RNA less without",
        rna_less_plain("retain", "perturbed"),
        above=0,
    ),
    Claim(
        "RNA makes them stumble less.",
        "section 6.4, Figure 1",
        "retain, default less perturbed: without RNA less with",
        won_back,
        above=0,
    ),
    Claim(
        "RNA brings nothing back that was forgotten.",
        "section 6.4, Figure 1",
        f"forget, default: with RNA less without, to be below {SAME_POINTS:g} points",
        rna_less_plain("forget", "default"),
        below=SAME_POINTS,
    ),
    Claim(
        "RNA improves retained knowledge, too.",
        "abstract, section 6.4",
        "retain, default: with RNA less without",
        rna_less_plain("retain", "default"),
        above=0,
    ),
    Claim(
        "RNA helps where retained knowledge is close to what is forgotten ...",
        "section 6.4, Table 1",
        "near, default: with RNA less without",
        rna_less_plain("near", "default"),
        above=0,
    ),
    Claim(
        "... and under perturbation.",
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
        "The deeper the layer, the less robust.",
        "section 6.5",
        "retain, perturbed: slope, without RNA",
        by_layer,
        below=0,
        unit="points for each layer",
    ),
    Claim(
        "Too large a noise scale costs robustness.",
        "section 6.6, Figure 3, phase II",
        "retain, perturbed: at the lowest point after the peak less at the peak",
        between_phases("retain", 0, 1),
        below=0,
    ),
    Claim(
        "With a larger one still, retained knowledge comes back ...",
        "section 6.6, Figure 3, phase III",
        "retain, perturbed: at the largest nu less at the lowest point",
        between_phases("retain", 1, 2),
        above=0,
    ),
    Claim(
        "... and forgotten knowledge with it.",
        "section 6.6, Figure 3, phase III",
        "forget, perturbed: at the largest nu less at retained knowledge's lowest point",
        between_phases("forget", 1, 2),
        above=0,
    ),
    Claim(
        "RM models are less sure than the base model under perturbation.",
        "section 6.3, Figure 1",
        "retain, mean MaxLogit: without RNA less base",
        maxlogit("maxlogit_mean"),
        below=0,
        unit="logits",
    ),
    Claim(
        "Their MaxLogit is more concentrated than the base model's.",
        "section 6.3, Figure 1",
        "retain, standard deviation of MaxLogit: without RNA less base",
        maxlogit("maxlogit_std"),
        below=0,
        unit="logits",
    ),
    Claim(
        "N-grams more similar to their documents do more harm.",
        "section 6.7, Figure 4",
        "retain: similarity-most less similarity-least, without RNA less base",
        over_ngrams(BY_SIMILARITY),
        below=0,
    ),
    Claim(
        "Longer n-grams do more harm.",
        "section 6.7, Figure 4",
        "retain: slope over n of 2, 4, 8 and 16, without RNA less base",
        over_ngrams(BY_LENGTH),
        below=0,
        unit="points for each doubling",
    ),
)
