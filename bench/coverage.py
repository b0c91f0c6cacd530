"""How often 95 % intervals hold the truth: `python -m bench.coverage -o docs/statistics.md` (a minute).

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

from unlearn.statistics.intervals import Interval, over_items, over_seeds, share, two_way
from unlearn.statistics.paired import paired

Draw = Callable[[np.random.Generator], Interval]


@dataclass(frozen=True)
class Case:
    """An interval, the population that its data are drawn from, the truth, and one draw."""

    interval: str
    data: str
    truth: float
    draw: Draw
    promised: bool = True  # whether the interval is made for such data
    discrete: bool = False  # shares of few questions: the coverage can be no number between
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


def _pairs(n: int, only_a: float, only_b: float, rng: np.random.Generator, each: int = 1) -> Interval:
    """Answers to `n` questions, or to `each` questions about each of n facts, which a model answers alike."""
    kinds = np.repeat(rng.choice(3, size=n, p=[only_a, only_b, 1 - only_a - only_b]), each)
    result = paired((kinds == 0).tolist(), (kinds == 1).tolist())
    return Interval(result.difference, result.low, result.high)


def _crossed_case(interval: str, sizes: tuple[int, int], spreads: tuple[float, float], kind: str = "normal") -> Case:
    shared = interval == "over_seeds" and spreads[1] > 0
    data = f"{sizes[0]} seeds, {sizes[1]} items; SD of seeds {spreads[0]:g}, of items {spreads[1]:g}, {kind}"
    return Case(
        interval, data, 0, partial(_crossed, interval, *sizes, *spreads, kind), not shared, symmetric=kind == "normal"
    )


CASES = [
    _crossed_case("over_seeds", (3, 18), (0.3, 0)),
    _crossed_case("over_seeds", (5, 100), (0.3, 0)),
    _crossed_case("over_seeds", (3, 18), (0.1, 0.4)),
    _crossed_case("over_seeds", (3, 60), (0.1, 0.4)),
    _crossed_case("two_way", (3, 18), (0.1, 0.4)),
    _crossed_case("two_way", (3, 18), (0.4, 0.1)),
    _crossed_case("two_way", (3, 60), (0.2, 0.5)),
    _crossed_case("two_way", (5, 100), (0.1, 0.5)),
    _crossed_case("two_way", (3, 18), (0.1, 0.4), "skewed"),
    _crossed_case("two_way", (5, 60), (0.1, 1), "skewed"),
    Case("over_items", "18 items, normal", 0, lambda rng: over_items(_items(18, "normal", rng))),
    Case("over_items", "18 items, skewed", 0, lambda rng: over_items(_items(18, "skewed", rng)), symmetric=False),
    Case("over_items", "60 items, skewed", 0, lambda rng: over_items(_items(60, "skewed", rng)), symmetric=False),
    Case("over_items", "18 items, log-normal", 0, lambda rng: over_items(_items(18, "log-normal", rng)), False),
    Case(
        "paired", "20 questions, 20 % and 5 % right in one only", -0.15, partial(_pairs, 20, 0.2, 0.05), discrete=True
    ),
    Case("paired", "100 questions, 3 % and 1 %", -0.02, partial(_pairs, 100, 0.03, 0.01), discrete=True),
    Case("paired", "100 questions, 20 % and 10 %", -0.1, partial(_pairs, 100, 0.2, 0.1), discrete=True),
    Case("paired", "1000 questions, 5 % and 4 %", -0.01, partial(_pairs, 1000, 0.05, 0.04)),
    Case(
        "paired",
        "four questions for each of 50 facts, answered alike",
        0.1,
        partial(_pairs, 50, 0.1, 0.2, each=4),
        False,
    ),
    Case("share", "30 questions, 90 % right", 0.9, lambda rng: share(int(rng.binomial(30, 0.9)), 30), discrete=True),
]
HEAD = """\
# Statistics

The intervals, and the tests of paired comparisons, are in `unlearn/statistics/`. Each docstring has the estimand, the
design, the formula and its source. Elsewhere are two tests: p of a claim, over questions
(`paper/claims/contrasts.py`), and Shapiro and Wilk's of the theorems' assumptions (`paper/theory/assumptions.py`).

| where | what varies | interval |
|---|---|---|
| one run: differences from the base model and the default query; `unlearn compare` | items | `paired`, `over_items` |
| report: a setting's figures; attacks | seeds | `over_seeds` |
| report: what RNA changes | seeds and items | `two_way` |
| claims | seeds, which share their items | `over_seeds` |
| claims: correlation of MaxLogit and cost | models | `correlation` |
| theorems | items | `over_items`, `share` |

Items are questions or texts. A claim speaks of other seeds, and of these very questions, texts and forget-tokens. Its
interval is too narrow for other texts, as the third and fourth row below show. Claims are not corrected for their
number.

Written by `python -m bench.coverage -o docs/statistics.md`: how often a 95 % interval holds the truth, and how often it
lies above or below it, where an effect would be "seen" that is not there (2.5 % each, if all is well). Rows in italics
are data for which the interval is not made.

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
    parser.add_argument("--draws", type=int, default=4000)
    args = parser.parse_args()
    rows = []
    for case in CASES:
        cells = [case.interval, case.data, *(f"{value:.1f}" for value in coverage(case, args.draws))]
        rows.append(f"| {' | '.join(cells if case.promised else [f'*{cell}*' for cell in cells])} |\n")
    args.output.write_text(HEAD + "".join(rows))


if __name__ == "__main__":
    main()
