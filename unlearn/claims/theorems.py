"""The paper's assumption and theorems, as `python -m unlearn.theory` measured them on runs, judged by fixed rules.

Each rule sees one theory.json. A claim is seen or contrary if it is so of every run that was measured.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearn.claims.claims import CONTRARY, NOT_SEEN, SEEN
from unlearn.claims.evidence import Subject
from unlearn.screen import say

DRAWS = 32  # of noise, for each question and variance
LEVEL = 0.01  # of a test, and of the share of directions that a test may reject by chance
Theory = Mapping[str, Any]


@dataclass(frozen=True)
class Theorem:
    """What the paper says, what was measured of one run, and whether that agrees.

    `trained`: it is of a model with RNA beside one without; else of a model without.
    """

    says: str
    place: str
    measured: Callable[[Theory], str]
    holds: Callable[[Theory], bool]
    trained: bool = False

    def verdict(self, found: Sequence[Theory]) -> str:
        """SEEN if it holds of all, CONTRARY if of none, else NOT_SEEN."""
        held = {self.holds(theory) for theory in found}
        return NOT_SEEN if len(held) > 1 else SEEN if held == {True} else CONTRARY


def read_theory(folder: Path) -> dict[str, Any] | None:
    """A run's theory.json, if it has one. Raises ValueError if that is not JSON."""
    file = folder / "theory.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def measure_theorems(subjects: Sequence[Subject], limit: int) -> None:
    """Write the theory.json of each method's first seed, without RNA and beside it with RNA, where there is none."""
    from unlearn.theory.__main__ import theory

    for subject in subjects:
        plain, rna = (subject.evidence.material.runs_of(setting) for setting in (subject.plain, subject.rna))
        seed = min(plain.keys() & rna.keys())
        for run, counterpart in ((plain[seed], None), (rna[seed], plain[seed].folder)):
            if read_theory(run.folder) is None:
                say(f"Theorems: {subject.method}, nu {run.identity['rna']['nu']:g}, seed {seed}")
                theory(run.folder, counterpart, limit=limit, draws=DRAWS)


def _isotropy(theory: Theory) -> str:
    found = theory["assumption_4_2"]
    return (
        f"{found['isotropy']['directions']:.1f} of {theory['dim']} directions (p {found['isotropy']['p']:.2g}), "
        f"{100 * found['mean']['share']:.1f} % a common mean (p {found['mean']['p']:.2g}), "
        f"{100 * found['normality']['random directions']['rejected']:.0f} % of directions not normal"
    )


def _assumption_holds(theory: Theory) -> bool:
    found = theory["assumption_4_2"]
    normal = found["normality"]["random directions"]["rejected"] <= LEVEL
    return found["isotropy"]["p"] >= LEVEL and found["mean"]["p"] >= LEVEL and normal


def _rows(theory: Theory, part: str) -> list[dict[str, Any]]:
    return theory["theorem_5_2"][part]["all"]["rows"]


def _within(row: Mapping[str, Any], form: str) -> bool:
    return row["measured"]["low"] <= row[form]["mean"] <= row["measured"]["high"]


def _rejections(part: str, form: str) -> Callable[[Theory], str]:
    def text(theory: Theory) -> str:
        rows = _rows(theory, part)
        pairs = [f"{row['measured']['mean']:.3f} ({row[form]['mean']:.3f})" for row in rows]
        return f"at nu/eta {', '.join(format(row['nu_to_eta'], 'g') for row in rows)}: {', '.join(pairs)}"

    return text


def _bounded(theory: Theory) -> bool:
    return all(row["measured"]["low"] <= 0.5 for row in _rows(theory, "injected"))


def _grows(theory: Theory) -> bool:
    measured = [row["measured"]["mean"] for row in _rows(theory, "injected")]
    return measured == sorted(measured)


def _trained(theory: Theory) -> str:
    found = theory["against"]
    return (
        f"{100 * found['rejected']['mean']:.1f} % ({100 * found['rejected']['low']:.1f} .. "
        f"{100 * found['rejected']['high']:.1f}), predicted {100 * found['predicted']['nu']['exact']['mean']:.1f} %"
    )


def _trained_holds(theory: Theory) -> bool:
    found = theory["against"]
    return found["rejected"]["low"] <= found["predicted"]["nu"]["exact"]["mean"] <= found["rejected"]["high"]


THEOREMS = (
    Theorem(
        "A forget-token adds N(0, eta I) to the state at layer l.",
        "Assumption 4.2",
        _isotropy,
        _assumption_holds,
    ),
    Theorem(
        "Noise of the size eta at layer l changes the output linearly.",
        "Theorem 4.3",
        lambda theory: f"linear up to {theory['theorem_4_3']['linear_breaks_at'] or 'more than was tried'} eta",
        lambda theory: (theory["theorem_4_3"]["linear_breaks_at"] or float("inf")) > 1,
    ),
    Theorem(
        "P[ratio <= 0] is the closed form as published, for small noise.",
        "Theorem 5.2, Eq. 27",
        _rejections("injected_small", "published"),
        lambda theory: all(_within(row, "published") for row in _rows(theory, "injected_small")),
    ),
    Theorem(
        "... and with the scale of the sum (`exact`).",
        "Theorem 5.2, corrected",
        _rejections("injected_small", "exact"),
        lambda theory: all(_within(row, "exact") for row in _rows(theory, "injected_small")),
    ),
    Theorem(
        "It grows with nu/eta, also for noise of the size eta.",
        "Theorem 5.2, section 5.2",
        _rejections("injected", "exact"),
        _grows,
    ),
    Theorem("It stays below 1/2.", "Theorem 5.2", _rejections("injected", "exact"), _bounded),
    Theorem(
        "Models that RNA has trained reject as often as that.",
        "Theorem 5.2, Assumption 5.1",
        _trained,
        _trained_holds,
        trained=True,
    ),
)
