"""The verdicts as a page of Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import pandas as pd

from unlearn.claims.claims import CLAIMS, NOT_MEASURED, SAME, Claim, stumble, stumble_with_rna
from unlearn.claims.evidence import Evidence, Subject
from unlearn.claims.theorems import THEOREMS, Theorem, read_theory
from unlearn.errors import UserError
from unlearn.report.contrasts import Contrast
from unlearn.report.material import Material

SHOWN = (("retain", "default"), ("retain", "perturbed"), ("retain", "control"), ("near", "default"),
         ("near", "perturbed"), ("forget", "default"))  # fmt: skip
RULE = f"""\
A claim is about one number for each method, its effect, given in points of accuracy as the mean over seeds with its
95 % interval (Student's t). **Seen**: the whole interval lies where the claim says. **Contrary**: the whole interval
lies where it does not. **Not seen**: neither. "The same" means within {SAME:g} points. The best nu, the peak and the
lowest point are chosen on one half of the facts, the first for retained knowledge under perturbation less forgotten
knowledge, the others for the former alone; every effect of accuracy is measured on the other half. The rule stood
before the numbers."""


def document(m: Material, title: str) -> str:
    """The page: what was run, the rule, the verdicts, accuracies and theorems."""
    subjects = Evidence(m).subjects
    if not subjects:
        raise UserError(
            "no method has finished runs without RNA and with it, alike in all else: there is nothing to judge."
        )
    parts = [f"# {title}", _about(m), RULE, *_verdicts(subjects), *_numbers(subjects), *_theory(m)]
    return "\n\n".join(parts) + "\n"


def _about(m: Material) -> str:
    done = m.about[(m.about["status"] == "done") & (m.about["world"] == m.world)]
    lost = len(m.about) - len(done)
    seeds = sorted(done["seed"].unique())
    more = f", {lost} more are unfinished, failed or of another model or other questions" if lost else ""
    model = m.runs[int(done["number"].iloc[0])].identity["model"]
    return (
        f"Written by `python -m unlearn.claims` from {len(done)} runs{more}. Model {model['name']}, layer "
        f"{model['layer']}; seeds {', '.join(f'{seed:g}' for seed in seeds)}. Not every seed is in every setting."
    )


def _verdicts(subjects: Sequence[Subject]) -> Iterator[str]:
    yield "## The claims"
    rows = []
    for claim in CLAIMS:
        cells = {s.method: _cell(claim, claim.effect(s)) for s in subjects}
        rows.append({"claim": f"{claim.says} ({claim.place})", "effect": f"{claim.measured}, {claim.unit}", **cells})
    yield _table(pd.DataFrame(rows))


def _cell(claim: Claim, effect: Contrast | str) -> str:
    verdict = claim.verdict(effect)
    if isinstance(effect, str):
        return f"**{verdict}**: {effect}"
    if verdict == NOT_MEASURED:
        return f"{verdict}: {effect.why_not or 'one seed'}"
    digits = 2 if claim.unit == "logits" else 1
    interval = f"{effect.seeds_low:+.{digits}f} .. {effect.seeds_high:+.{digits}f}"
    return f"**{verdict}** {effect.difference:+.{digits}f} ({interval}; {effect.seeds} seeds)"


def _numbers(subjects: Sequence[Subject]) -> Iterator[str]:
    yield "## What was measured"
    rows = []
    for s in subjects:
        for name, setting in (("base", None), ("none", s.plain), (f"nu = {s.best_nu:g}", s.rna)):
            row = {"method": s.method if setting is None else "", "RNA": name}
            for role, query in SHOWN:
                row[f"{role}, {query}"] = _accuracy(s, setting, role, query)
            rows.append(row)
    yield _table(pd.DataFrame(rows))
    yield (
        "Accuracies in %, means over seeds with 95 % intervals, over all questions; nu as chosen on the first half of "
        "the facts."
    )
    yield _table(pd.DataFrame([_recovered(s) for s in subjects]))
    yield (
        "Drop: retained knowledge, default less perturbed, in points, beyond the base model's own; p over questions "
        "(each question's mean over seeds; a normal test). Recovered: the share of it that RNA takes away. On the "
        "second half of the facts."
    )


def _accuracy(s: Subject, setting: str | None, role: str, query: str) -> str:
    means = s.evidence.material.means
    of = means[(means["role"] == role) & (means["query"] == query) & (means["task"] == "mean")]
    of = of[(of["setting"] == (setting or s.plain)) & (of["model"] == ("unlearned" if setting else "base"))]
    if of.empty:
        return "–"
    row = of.iloc[0]
    return f"{row['mean']:.1f}" + (f" ({row['low']:.1f} .. {row['high']:.1f})" if setting else "")


def _recovered(s: Subject) -> dict[str, str]:
    plain, rna = stumble(s), stumble_with_rna(s)
    share = 1 - rna.difference / plain.difference if plain.difference > 0 else math.nan
    cells = {
        name: "–" if math.isnan(c.difference) else
        f"{c.difference:.1f} ({c.seeds_low:.1f} .. {c.seeds_high:.1f}), p {c.p:.1g}"
        for name, c in (("drop without RNA", plain), ("drop with RNA", rna))
    }  # fmt: skip
    nus = ", ".join(f"{nu:g}" for nu in s.by_nu)
    return {"method": s.method, "nu": f"{s.best_nu:g} (of {nus})", **cells,
            "recovered": "–" if math.isnan(share) else f"{100 * share:.0f} %"}  # fmt: skip


def _theory(m: Material) -> Iterator[str]:
    found = {}
    for run, about in zip(m.runs, m.about.itertuples(), strict=True):
        with m.reading(run):
            theory = read_theory(run.folder) if run.done else None
            if theory is not None:
                found[f"{about.method}, nu {about.nu:g}, seed {about.seed:g}"] = theory
    if not found:
        return
    yield "## The theorems"
    rows = [row for theorem in THEOREMS if (row := _theorem(theorem, found)) is not None]
    yield _table(pd.DataFrame(rows))
    yield (
        "Measured by `python -m unlearn.theory` on perturbed queries of the retain role; in brackets what the formula "
        "says. Seen or contrary: for every run that was measured."
    )


def _theorem(theorem: Theorem, found: dict[str, dict]) -> dict[str, str] | None:
    of = {name: theory for name, theory in found.items() if theorem.trained == ("against" in theory)}
    if not of:
        return None
    return {
        "claim": f"{theorem.says} ({theorem.place})",
        "verdict": f"**{theorem.verdict(list(of.values()))}**",
        "measured": "; ".join(f"{name}: {theorem.measured(theory)}" for name, theory in of.items()),
    }


def _table(data: pd.DataFrame) -> str:
    return data.to_markdown(index=False)
