"""How often 95 % intervals hold the truth: `python -m bench.coverage -o docs/statistics.md` (three minutes).

Each case draws data from a known population many times. An interval that lies above or below the truth would show an
effect that is not there as "seen".
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from unlearn.analysis.settings import Setting
from unlearn.paper.claims.contrasts import contrast
from unlearn.paper.claims.equal_forgetting import at_equal_forgetting
from unlearn.paper.claims.margins import MARGINS
from unlearn.statistics.intervals import Interval, over_items, over_seeds, rank_correlation, share, two_way
from unlearn.statistics.paired import paired

DRAWS = 2000  # of data, for each case
Draw = Callable[[np.random.Generator], Interval]


@dataclass(frozen=True)
class Case:
    """An interval, the population that its data are drawn from, the truth, and one draw."""

    interval: str
    data: str
    truth: float
    draw: Draw
    promised: bool = True  # whether the interval is made for such data
    wide: str = ""  # why it covers more than 97 %, if it does
    symmetric: bool = True

    def __str__(self) -> str:
        return f"{self.interval}, {self.data}"


def _items(n: int, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Values of mean 0: symmetric, skewed as an exponential distribution, or more, as a log-normal one."""
    if kind == "normal":
        return rng.normal(size=n)
    return rng.exponential(size=n) - 1 if kind == "skewed" else rng.lognormal(size=n) - np.exp(0.5)


def _crossed(
    interval: str, seeds: int, items: int, by_seed: float, by_item: float, kind: str, rng: np.random.Generator
) -> Interval:
    """Effects of seeds and items with these standard deviations, and a residual of 0.3."""
    noise = by_seed * rng.normal(size=(seeds, 1)) + 0.3 * rng.normal(size=(seeds, items))
    values = noise + by_item * _items(items, kind, rng)
    return two_way([values]) if interval == "two_way" else over_seeds(values.mean(axis=1).tolist())


def _pairs(
    n: int, only_a: float, only_b: float, rng: np.random.Generator, each: int = 1, clustered: bool = True
) -> Interval:
    """Answers to `n` questions, or to `each` questions about each of n facts, which a model answers alike."""
    kinds = np.repeat(rng.choice(3, size=n, p=[only_a, only_b, 1 - only_a - only_b]), each)
    facts = np.repeat(np.arange(n), each).tolist() if clustered else None
    result = paired((kinds == 0).tolist(), (kinds == 1).tolist(), facts)
    return Interval(result.difference, result.low, result.high)


def _accuracy(seeds: int, facts: int, each: int, clustered: bool, rng: np.random.Generator) -> Interval:
    """Over trainings, whose accuracies differ by an SD of 0.02: right answers less those of a base model.

    A fact has a difference of its own, which its questions share; else a question's answers are drawn for each seed.
    """
    p = np.clip(0.5 + 0.02 * rng.normal(size=(seeds, 1, 1)) + rng.choice([-0.4, 0.4], size=(facts, 1)), 0, 1)
    values = (rng.random((seeds, facts, each)) < p) - 0.5
    return two_way([values.mean(axis=2) if clustered else values.reshape(seeds, -1)])


def _at_equal_forgetting(shared: float, way: str, rng: np.random.Generator) -> Interval:
    """Three seeds, 18 texts to retain and 18 to forget; RNA changes nothing on average over all texts.

    A text costs more with RNA or less by a deviation that all seeds share, `shared` being the SD of its mean over 18
    texts. So do forgotten texts, by a quarter of it, where a nat more forgotten costs 0.3. Seeds have an SD of 0.1.
    """
    each = shared * 18**0.5
    cost, forgotten = each * rng.normal(size=18), each / 4 * rng.normal(size=18)
    rows = []
    for seed in range(3):
        own = 0.1 * rng.normal()
        for nu, strength in ((0, 4.3), (0, 6.1), (0.5, 5.2)):
            levels = strength + 0.3 * rng.normal(size=18) + (nu > 0) * forgotten
            costs = 0.3 * strength + 0.3 * rng.normal(size=18) + (nu > 0) * (cost + own)
            texts = {"forgotten": {"f": dict(enumerate(levels))}, "cost": {"r": dict(enumerate(costs))}}
            rows.append({"seed": seed, "nu": nu, "level": levels.mean(), **texts})
    frame = pd.DataFrame(rows).assign(setting=Setting(frozenset()))
    effects = list(at_equal_forgetting(frame, "cost").values())
    if way == "two_way":
        effect = contrast(effects, "texts")
        return Interval(effect.difference, effect.low, effect.high)
    return over_seeds([float(np.mean([np.mean(list(of.values())) for of in effect.values()])) for effect in effects])


def _ranks(n: int, r: float, rng: np.random.Generator) -> Interval:
    """Spearman's correlation of pairs from a normal distribution with Pearson's r; its truth is 6 asin(r / 2) / pi."""
    x, other = rng.normal(size=(2, n))
    return rank_correlation(x, r * x + (1 - r**2) ** 0.5 * other)


def _crossed_case(
    interval: str, sizes: tuple[int, int], spreads: tuple[float, float], kind: str = "normal", wide: str = ""
) -> Case:
    shared = interval == "over_seeds" and spreads[1] > 0
    data = f"{sizes[0]} seeds, {sizes[1]} items; SD of seeds {spreads[0]:g}, of items {spreads[1]:g}, {kind}"
    draw = partial(_crossed, interval, *sizes, *spreads, kind)
    return Case(interval, data, 0, draw, not shared, wide, symmetric=kind == "normal")


def _equal_case(way: str, shared: float) -> Case:
    data = f"at equal forgetting, 3 seeds, 18 and 18 texts; SD of the error that seeds share {shared:g}"
    return Case(way, data, 0, partial(_at_equal_forgetting, shared, way), way == "two_way")


FEW_SEEDS = "few seeds say little of their own variance, and where items vary more, the interval still allows for it"
DISCRETE = "a share of few items takes few values, so that its coverage takes no value between; it is never too narrow"
FACTS = "four questions for each of 48 facts, answered alike"
CASES = [
    _crossed_case("over_seeds", (3, 18), (0.3, 0)),
    _crossed_case("over_seeds", (5, 100), (0.3, 0)),
    _crossed_case("over_seeds", (3, 18), (0.1, 0.4)),
    _crossed_case("over_seeds", (3, 60), (0.1, 0.4)),
    _crossed_case("two_way", (3, 18), (0.1, 0.4), wide=FEW_SEEDS),
    _crossed_case("two_way", (3, 18), (0.4, 0.1)),
    _crossed_case("two_way", (3, 60), (0.2, 0.5)),
    _crossed_case("two_way", (5, 100), (0.1, 0.5)),
    _crossed_case("two_way", (3, 18), (0.1, 0.4), "skewed", wide=FEW_SEEDS),
    _crossed_case("two_way", (5, 60), (0.1, 1), "skewed"),
    *(_equal_case(way, shared) for way in ("over_seeds", "two_way") for shared in (0.2, 0.4, 0.6)),
    Case(
        "two_way",
        "5 seeds, four questions for each of 48 facts, by question",
        0,
        partial(_accuracy, 5, 48, 4, False),
        False,
    ),
    Case("two_way", "the same, facts as items", 0, partial(_accuracy, 5, 48, 4, True)),
    Case("over_items", "18 items, normal", 0, lambda rng: over_items(_items(18, "normal", rng))),
    Case("over_items", "18 items, skewed", 0, lambda rng: over_items(_items(18, "skewed", rng)), symmetric=False),
    Case("over_items", "60 items, skewed", 0, lambda rng: over_items(_items(60, "skewed", rng)), symmetric=False),
    Case("over_items", "18 items, log-normal", 0, lambda rng: over_items(_items(18, "log-normal", rng)), False),
    Case(
        "paired", "20 questions, 20 % and 5 % right in one only", -0.15, partial(_pairs, 20, 0.2, 0.05), wide=DISCRETE
    ),
    Case("paired", "100 questions, 3 % and 1 %", -0.02, partial(_pairs, 100, 0.03, 0.01), wide=DISCRETE),
    Case("paired", "100 questions, 20 % and 10 %", -0.1, partial(_pairs, 100, 0.2, 0.1)),
    Case("paired", "1000 questions, 5 % and 4 %", -0.01, partial(_pairs, 1000, 0.05, 0.04)),
    Case("paired", f"{FACTS}, by question", 0.1, partial(_pairs, 48, 0.1, 0.2, each=4, clustered=False), False),
    Case("paired", "the same, facts as items", 0.1, partial(_pairs, 48, 0.1, 0.2, each=4)),
    Case("rank_correlation", "50 forget-tokens, normal, 0.38", 6 / np.pi * np.arcsin(0.2), partial(_ranks, 50, 0.4)),
    Case("share", "30 questions, 90 % right", 0.9, lambda rng: share(int(rng.binomial(30, 0.9)), 30), wide=DISCRETE),
]
MARKS = {FEW_SEEDS: "‡", DISCRETE: "†"}
WIDER = "\n".join(f"- {mark} {why}." for why, mark in MARKS.items())
HEAD = f"""\
# Statistics

The intervals, and the tests of paired comparisons, are in `unlearn/statistics/`. Each docstring has the estimand, the
design, the formula and its source. Elsewhere is Shapiro and Wilk's test of the theorems' assumptions
(`paper/theory/assumptions.py`).

| where | what varies | interval |
|---|---|---|
| one run: differences from the base model and the default query; `unlearn compare` | items | `paired`, `over_items` |
| report: a setting's figures; attacks | seeds | `over_seeds` |
| report: what RNA changes | seeds and items | `two_way` |
| claims: on questions, on texts, at equal forgetting, against rivals | seeds and items | `two_way` |
| claims: under attack, of which there are no single answers | seeds | `over_seeds` |
| claims: correlation of MaxLogit and cost | models | `correlation` |
| claims: what tells a forget-token's cost | forget-tokens | `rank_correlation` |
| theorems | items | `over_items`, `share` |

**Items** are questions, texts, or, where several questions ask about one fact, facts: a task names the column of its
documents that tells them (`metadata.fact`, as in `unlearn/toy/tasks`). Where a claim is about what an inserted word
does, the texts or questions into which it was inserted are one item; so it is with n-grams. An interval over seeds
alone speaks of these very items: it is too narrow for others, as rows in italics show.

**At equal forgetting** a run with RNA is compared with the point of the curve without RNA, of its seed, at its own
level of forgetting. That point is read between two runs. Its weights are the same for all texts, so each text has a
difference for each seed. The level is a mean over texts to forget. What other ones would change is added by the delta
method (`paper/claims/equal_forgetting.py::at_equal_forgetting`).

**Families.** The claims below one heading of `unlearn claims`, for all methods together, are a family. "Holm" beside a
verdict is the verdict after Holm's correction (`statistics/families.py`); rivals have plain verdicts. With three seeds
hardly anything passes it: far out, the interval is ruled by what three seeds leave open of their own variance.

**Margins.** {MARGINS}

## Coverage

Written by `python -m bench.coverage -o docs/statistics.md`: how often a 95 % interval holds the truth, and how often it
lies above or below it, where an effect would be "seen" that is not there (2.5 % each, if all is well). Rows in italics
are data for which the interval is not made. `make test-all` asserts 93 to 97 %, and at most 3.5 % to a side where data
are symmetric, but for marked rows, which cover more:
{WIDER}

| interval | data | covers, % | above, % | below, % |
|---|---|--:|--:|--:|
"""


def coverage(case: Case, draws: int) -> tuple[float, float, float]:
    """In percent: how often the interval holds the truth, lies above it, lies below it."""
    rng = np.random.default_rng(0)
    ends = np.array([case.draw(rng)[1:] for _ in range(draws)])
    above, below = (ends[:, 0] > case.truth).mean(), (ends[:, 1] < case.truth).mean()
    return float(100 * (1 - above - below)), float(100 * above), float(100 * below)


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", dest="output", type=Path, default=Path("docs/statistics.md"), metavar="FILE")
    parser.add_argument("--draws", type=int, default=DRAWS)
    args = parser.parse_args()
    rows = []
    for case in CASES:
        cells = [
            case.interval,
            case.data + (f" {MARKS[case.wide]}" if case.wide else ""),
            *(f"{value:.1f}" for value in coverage(case, args.draws)),
        ]
        rows.append(f"| {' | '.join(cells if case.promised else [f'*{cell}*' for cell in cells])} |\n")
    args.output.write_text(HEAD + "".join(rows))


if __name__ == "__main__":
    main()
