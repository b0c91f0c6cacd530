"""Verdicts on the paper's assumptions and theorems, by fixed rules, from the results of `unlearn theory`.

A rule is applied to one theory.json. A claim is seen, or contrary, if it is so in every measured run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

SEEN, NOT_SEEN, CONTRARY, NOT_MEASURED = "seen", "not seen", "contrary", "not measured"
LEVEL = 0.01  # of a test, and of the share of directions that a test may reject by chance
CLOSE = 0.02  # how far a measured probability may be from a formula's
NEAR = 0.1  # ... and one of so many questions as a model has
THEORY_FILE = "theory.json"  # in the folder of the run that was measured
Theory = Mapping[str, Any]  # its content


@dataclass(frozen=True)
class Theorem:
    """What the paper says, what was measured of one run, and whether that agrees, by a rule that `rule` tells.

    `part` is the part of theory.json that it needs. `holds` is None if it cannot be told.
    """

    says: str
    place: str
    part: str
    rule: str
    measured: Callable[[Theory], str]
    holds: Callable[[Theory], bool | None]

    @property
    def trained(self) -> bool:
        """Whether it is about a model with RNA beside one without; else it is about one without."""
        return self.part == "against"

    def verdict(self, results: Sequence[Theory]) -> str:
        """SEEN if it holds of all, CONTRARY if it fails of all, else NOT_SEEN."""
        held = {self.holds(theory) for theory in results}
        return SEEN if held == {True} else CONTRARY if held == {False} else NOT_SEEN


def _spread(differences: Theory, dim: int) -> str:
    """Of differences of states: how many directions they fill, what they have in common, how normal they are."""
    return (
        f"{differences['isotropy']['directions']:.1f} of {dim} directions (p {differences['isotropy']['p']:.2g}), "
        f"{100 * differences['mean']['share']:.1f} % a common mean (p {differences['mean']['p']:.2g}), "
        f"{100 * differences['normality']['random directions']['rejected']:.0f} % of directions not normal"
    )


def _is_noise(differences: Theory) -> bool | None:
    """False or None: a test can refute the assumption, but not confirm it."""
    normal = differences["normality"]["random directions"]["rejected"] <= LEVEL
    return None if differences["isotropy"]["p"] >= LEVEL and differences["mean"]["p"] >= LEVEL and normal else False


def _off_by_noise(theory: Theory) -> str:
    against = theory["against"]
    return f"{_spread(against['assumption_5_1'], theory['dim'])}; a variance of {against['nu_measured']:.2g}"


def _off_by_nu(theory: Theory) -> bool | None:
    against = theory["against"]
    variance = against["assumption_5_1"]["eta"]
    return _is_noise(against["assumption_5_1"]) if variance["low"] <= against["nu"] <= variance["high"] else False


def _linear(theory: Theory) -> str:
    broken = theory["theorem_4_3"]["linear_breaks_at"]
    return "linear wherever it was tried" if broken is None else f"no longer linear at {broken:g} eta"


def _rows(theory: Theory, part: str) -> list[dict[str, Any]]:
    return theory["theorem_5_2"][part]["all"]["rows"]


def _rejections(part: str, form: str) -> Callable[[Theory], str]:
    def text(theory: Theory) -> str:
        rows = _rows(theory, part)
        pairs = [f"{row['measured']['mean']:.3f} ({row[form]['mean']:.3f})" for row in rows]
        return f"at nu/eta {', '.join(format(row['nu_to_eta'], 'g') for row in rows)}: {', '.join(pairs)}"

    return text


def _off(row: Theory, form: str) -> float:
    return abs(row["measured"]["mean"] - row[form]["mean"])


def _close(part: str, form: str) -> Callable[[Theory], bool]:
    return lambda theory: all(_off(row, form) <= CLOSE for row in _rows(theory, part))


def _close_where_linear(form: str) -> Callable[[Theory], bool | None]:
    """Where the losses are linear, else it would be the approximation that fails. None if they are nowhere."""

    def holds(theory: Theory) -> bool | None:
        rows = [row for row in _rows(theory, "injected_small") if _off(row, "linear") <= CLOSE]
        return all(_off(row, form) <= CLOSE for row in rows) if rows else None

    return holds


def _apart(lower: Theory, upper: Theory) -> bool | None:
    """Whether the first interval lies below the second; None if they overlap."""
    return True if lower["high"] < upper["low"] else False if upper["high"] < lower["low"] else None


def _grows(theory: Theory) -> bool | None:
    rows = [row["measured"] for row in _rows(theory, "injected")]
    falls = any(_apart(before, after) is False for before, after in pairwise(rows))
    return False if falls else _apart(rows[0], rows[-1])


def _thirds(theory: Theory) -> tuple[dict[str, float], dict[str, float]]:
    """What is measured at nu = eta of the thirds of the questions with the smallest and the largest gradient ratio."""
    parts = theory["theorem_5_2"]["injected"]
    low, high = (next(r for r in parts[name]["rows"] if r["nu_to_eta"] == 1) for name in ("low", "high"))
    return low["measured"], high["measured"]


def _bounded(theory: Theory) -> bool | None:
    sides = [_below(row["measured"], 0.5 + CLOSE) for row in _rows(theory, "injected")]
    return False if False in sides else None if None in sides else True


def _below(measured: Theory, bound: float) -> bool | None:
    """Whether the whole interval lies below a bound; None if the bound is in it."""
    return _apart(measured, {"low": bound, "high": bound})


def _trained(theory: Theory) -> str:
    against = theory["against"]
    return (
        f"{100 * against['rejected']['mean']:.1f} % ({100 * against['rejected']['low']:.1f} .. "
        f"{100 * against['rejected']['high']:.1f}), predicted {100 * against['predicted']['nu']['exact']['mean']:.1f} %"
    )


def _trained_holds(theory: Theory) -> bool | None:
    against = theory["against"]
    low, high, form = (
        against["rejected"]["low"],
        against["rejected"]["high"],
        against["predicted"]["nu"]["exact"]["mean"],
    )
    if not low <= form <= high:
        return False
    return True if form - NEAR < low and high < form + NEAR else None


def _loss_rises(theory: Theory) -> bool | None:
    above = _below(theory["against"]["rm_loss_rises"], 0.5)
    return None if above is None else not above


THEOREMS = (
    Theorem(
        "A forget-token adds N(0, eta I) to the state at layer l.",
        "Assumption 4.2",
        "assumption_4_2",
        f"never: it can be refuted only, by a common mean or a lack of isotropy (p below {LEVEL:g}), or by more than "
        f"{100 * LEVEL:g} % of directions not normal (false discovery rate 5 %)",
        lambda theory: _spread(theory["assumption_4_2"], theory["dim"]),
        lambda theory: _is_noise(theory["assumption_4_2"]),
    ),
    Theorem(
        "Noise of the size eta at layer l changes the output linearly.",
        "Theorem 4.3",
        "theorem_4_3",
        "it is still linear at eta",
        _linear,
        lambda theory: (theory["theorem_4_3"]["linear_breaks_at"] or float("inf")) > 1,
    ),
    Theorem(
        "P[ratio <= 0] is the closed form as published, for small noise.",
        "Theorem 5.2, Eq. 27",
        "theorem_5_2",
        f"within {CLOSE:g} at each nu/eta where the losses' linear part is, too",
        _rejections("injected_small", "published"),
        _close_where_linear("published"),
    ),
    Theorem(
        "... and with the scale of the sum, for small noise.",
        "Theorem 5.2, corrected",
        "theorem_5_2",
        f"within {CLOSE:g} at each nu/eta where the losses' linear part is, too",
        _rejections("injected_small", "exact"),
        _close_where_linear("exact"),
    ),
    Theorem(
        "... and for noise of the size eta.",
        "Theorem 5.2, corrected",
        "theorem_5_2",
        f"within {CLOSE:g} at each nu/eta",
        _rejections("injected", "exact"),
        _close("injected", "exact"),
    ),
    Theorem(
        "It grows with nu/eta.",
        "section 5.2",
        "theorem_5_2",
        "the last interval lies above the first, and none below the one before it",
        _rejections("injected", "exact"),
        _grows,
    ),
    Theorem(
        "It grows with the gradients' ratio, perturbed to default.",
        "Theorem 5.2",
        "theorem_5_2",
        "at nu = eta, the interval of the third with the largest ratio lies above that of the smallest",
        lambda theory: " and ".join(f"{part['mean']:.3f}" for part in _thirds(theory)) + ", smallest and largest",
        lambda theory: _apart(*_thirds(theory)),
    ),
    Theorem(
        "It does not exceed 1/2.",
        "Theorem 5.2",
        "theorem_5_2",
        f"by more than {CLOSE:g}, with every interval",
        _rejections("injected", "exact"),
        _bounded,
    ),
    Theorem(
        "A forget-token raises the loss of the model without RNA.",
        "section 5.2",
        "against",
        "on more than half of the questions, by the interval",
        lambda theory: f"{100 * theory['against']['rm_loss_rises']['mean']:.1f} %",
        _loss_rises,
    ),
    Theorem(
        "RNA adds N(0, nu I) to the state at layer l, on default queries.",
        "Assumption 5.1",
        "against",
        "as for Assumption 4.2, and nu lies in the interval of the measured variance",
        _off_by_noise,
        _off_by_nu,
    ),
    Theorem(
        "Models that RNA has trained reject as often as the form says.",
        "Theorem 5.2, Assumption 5.1",
        "against",
        f"the interval of the measured share has the form in it and is within {NEAR:g} of it",
        _trained,
        _trained_holds,
    ),
)
