"""The paper's assumption and theorems, as `python -m unlearn.theory` measured them on runs, judged by fixed rules.

Each rule sees one theory.json. A claim is seen or contrary if it is so of every run that was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from unlearn.claims.claims import CONTRARY, NOT_SEEN, SEEN
from unlearn.claims.evidence import Subject
from unlearn.errors import UserError
from unlearn.files import read_object
from unlearn.report.collect import Run
from unlearn.screen import say

DRAWS = 32  # of noise, for each question and variance
LEVEL = 0.01  # of a test, and of the share of directions that a test may reject by chance
CLOSE = 0.02  # how far a measured probability may be from a formula's
Theory = Mapping[str, Any]


@dataclass(frozen=True)
class Theorem:
    """What the paper says, what was measured of one run, and whether that agrees, by a rule that `rule` tells.

    `trained`: it is of a model with RNA beside one without; else of a model without.
    """

    says: str
    place: str
    rule: str
    measured: Callable[[Theory], str]
    holds: Callable[[Theory], bool]
    trained: bool = False

    def verdict(self, found: Sequence[Theory]) -> str:
        """SEEN if it holds of all, CONTRARY if of none, else NOT_SEEN."""
        held = {self.holds(theory) for theory in found}
        return NOT_SEEN if len(held) > 1 else SEEN if held == {True} else CONTRARY


def theories(subjects: Sequence[Subject]) -> dict[str, tuple[bool, dict[str, Any]]]:
    """Of each subject's runs without RNA and with its usual nu: name -> (whether RNA trained it, its theory.json).

    Only measurements of retained knowledge under perturbation and, of RNA, beside a model without.
    """
    found = {}
    for subject in subjects:
        for trained, seed, run in _runs(subject):
            with subject.evidence.material.reading(run):
                theory = _of_retained(run)
                if theory is not None and (not trained or "against" in theory):
                    found[f"{subject.method}, nu {run.identity['rna']['nu']:g}, seed {seed}"] = trained, theory
    return found


def _runs(subject: Subject) -> list[tuple[bool, int, Run]]:
    settings = [(False, subject.plain)]
    if subject.usual_nu is not None:
        settings.append((True, subject.compared[subject.usual_nu]))
    runs_of = subject.evidence.material.runs_of
    return [(trained, seed, run) for trained, setting in settings for seed, run in runs_of(setting).items()]


def _of_retained(run: Run) -> dict[str, Any] | None:
    """Raises UserError for a file that is no JSON object."""
    file = run.folder / "theory.json"
    theory = read_object(file) if file.is_file() else {}
    return theory if (theory.get("role"), theory.get("query")) == ("retain", "perturbed") else None


def measure_theorems(subjects: Sequence[Subject], limit: int) -> None:
    """Write the theory.json of each method's first seed, without RNA and beside it with RNA, where there is none."""
    from unlearn.theory.__main__ import theory

    for subject in subjects:
        by_seed: dict[int, dict[bool, Run]] = {}
        for trained, seed, run in _runs(subject):
            by_seed.setdefault(seed, {})[trained] = run
        pair = next((runs for _, runs in sorted(by_seed.items()) if len(runs) > 1), {})
        for trained, run in pair.items():
            known = _of_retained(run)
            if known is not None and (not trained or "against" in known):
                continue
            say(f"Theorems: {run.folder}")
            try:
                theory(run.folder, pair[False].folder if trained else None, limit=limit, draws=DRAWS)
            except UserError as error:
                say(f"Not measured: {error}")


def _spread(found: Theory, dim: int) -> str:
    """Of differences of states: how many directions they fill, what they have in common, how normal they are."""
    return (
        f"{found['isotropy']['directions']:.1f} of {dim} directions (p {found['isotropy']['p']:.2g}), "
        f"{100 * found['mean']['share']:.1f} % a common mean (p {found['mean']['p']:.2g}), "
        f"{100 * found['normality']['random directions']['rejected']:.0f} % of directions not normal"
    )


def _is_noise(found: Theory) -> bool:
    normal = found["normality"]["random directions"]["rejected"] <= LEVEL
    return found["isotropy"]["p"] >= LEVEL and found["mean"]["p"] >= LEVEL and normal


def _off_by_noise(theory: Theory) -> str:
    found = theory["against"]
    return f"{_spread(found['assumption_5_1'], theory['dim'])}; a variance of {found['nu_measured']:.2g}"


def _off_by_nu(theory: Theory) -> bool:
    found = theory["against"]
    variance = found["assumption_5_1"]["eta"]
    return _is_noise(found["assumption_5_1"]) and variance["low"] <= found["nu"] <= variance["high"]


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


def _close(part: str, form: str) -> Callable[[Theory], bool]:
    return lambda theory: all(abs(row["measured"]["mean"] - row[form]["mean"]) <= CLOSE for row in _rows(theory, part))


def _grows(theory: Theory) -> bool:
    rows = [row["measured"] for row in _rows(theory, "injected")]
    falls = any(after["high"] < before["low"] for before, after in pairwise(rows))
    return rows[0]["high"] < rows[-1]["low"] and not falls


def _thirds(theory: Theory) -> tuple[dict[str, float], dict[str, float]]:
    """What is measured at nu = eta of the thirds of the questions with the smallest and the largest gradient ratio."""
    parts = theory["theorem_5_2"]["injected"]
    low, high = (next(r for r in parts[name]["rows"] if r["nu_to_eta"] == 1) for name in ("low", "high"))
    return low["measured"], high["measured"]


def _bounded(theory: Theory) -> bool:
    return all(row["measured"]["mean"] <= 0.5 + CLOSE for row in _rows(theory, "injected"))


def _trained(theory: Theory) -> str:
    found = theory["against"]
    return (
        f"{100 * found['rejected']['mean']:.1f} % ({100 * found['rejected']['low']:.1f} .. "
        f"{100 * found['rejected']['high']:.1f}), predicted {100 * found['predicted']['nu']['exact']['mean']:.1f} %"
    )


def _trained_holds(theory: Theory) -> bool:
    found = theory["against"]
    return found["rejected"]["low"] <= found["predicted"]["nu"]["exact"]["mean"] <= found["rejected"]["high"]


def _loss_rises(theory: Theory) -> bool:
    return theory["against"]["rm_loss_rises"]["low"] > 0.5


THEOREMS = (
    Theorem(
        "A forget-token adds N(0, eta I) to the state at layer l.",
        "Assumption 4.2",
        f"no mean, isotropy and normality along random directions are all not rejected at {100 * LEVEL:g} %",
        lambda theory: _spread(theory["assumption_4_2"], theory["dim"]),
        lambda theory: _is_noise(theory["assumption_4_2"]),
    ),
    Theorem(
        "Noise of the size eta at layer l changes the output linearly.",
        "Theorem 4.3",
        "it is still linear at eta",
        _linear,
        lambda theory: (theory["theorem_4_3"]["linear_breaks_at"] or float("inf")) > 1,
    ),
    Theorem(
        "P[ratio <= 0] is the closed form as published, for small noise.",
        "Theorem 5.2, Eq. 27",
        f"within {CLOSE:g} at each nu/eta",
        _rejections("injected_small", "published"),
        _close("injected_small", "published"),
    ),
    Theorem(
        "... and with the scale of the sum, for small noise.",
        "Theorem 5.2, corrected",
        f"within {CLOSE:g} at each nu/eta",
        _rejections("injected_small", "exact"),
        _close("injected_small", "exact"),
    ),
    Theorem(
        "... and for noise of the size eta.",
        "Theorem 5.2, corrected",
        f"within {CLOSE:g} at each nu/eta",
        _rejections("injected", "exact"),
        _close("injected", "exact"),
    ),
    Theorem(
        "It grows with nu/eta.",
        "section 5.2",
        "the last interval lies above the first, and none below the one before it",
        _rejections("injected", "exact"),
        _grows,
    ),
    Theorem(
        "It grows with the gradients' ratio, perturbed to default.",
        "Theorem 5.2",
        "at nu = eta, the interval of the third with the largest ratio lies above that of the smallest",
        lambda theory: " and ".join(f"{part['mean']:.3f}" for part in _thirds(theory)) + ", smallest and largest",
        lambda theory: _thirds(theory)[0]["high"] < _thirds(theory)[1]["low"],
    ),
    Theorem(
        "It does not exceed 1/2.",
        "Theorem 5.2",
        f"by more than {CLOSE:g}",
        _rejections("injected", "exact"),
        _bounded,
    ),
    Theorem(
        "A forget-token raises the loss of the model without RNA.",
        "section 5.2",
        "on more than half of the questions, by the interval",
        lambda theory: f"{100 * theory['against']['rm_loss_rises']['mean']:.1f} %",
        _loss_rises,
        trained=True,
    ),
    Theorem(
        "RNA adds N(0, nu I) to the state at layer l, on default queries.",
        "Assumption 5.1",
        "as for Assumption 4.2, and nu lies in the interval of the measured variance",
        _off_by_noise,
        _off_by_nu,
        trained=True,
    ),
    Theorem(
        "Models that RNA has trained reject as often as the form says.",
        "Theorem 5.2, Assumption 5.1",
        "the form lies in the interval of the measured share",
        _trained,
        _trained_holds,
        trained=True,
    ),
)
