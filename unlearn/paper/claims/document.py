"""The page of verdicts, in Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from unlearn.analysis.frames import MEAN
from unlearn.analysis.report.export import as_text
from unlearn.analysis.report.figure import Table
from unlearn.analysis.settings import Setting
from unlearn.errors import UserError, describe
from unlearn.paper.claims import attacks, rivals, texts, tokens
from unlearn.paper.claims.claims import (
    CLAIMS,
    OVER_METHODS,
    Claim,
    at_nu,
    stumble,
    stumble_beside_rna,
    won_back,
)
from unlearn.paper.claims.contrasts import Contrast
from unlearn.paper.claims.evidence import Evidence, Subject
from unlearn.paper.claims.margins import MARGINS
from unlearn.paper.claims.theorems import theories
from unlearn.paper.theory.verdicts import NOT_MEASURED, NOT_SEEN, SEEN, THEOREMS
from unlearn.records.names import NGRAM_QUERIES, NGRAM_SIZES
from unlearn.records.ngrams import NGRAMS, Sizes, read_ngrams
from unlearn.screen import one_line
from unlearn.statistics.families import holm

SHOWN = (("retain", "default"), ("retain", "perturbed"), ("retain", "control"), ("near", "default"),
         ("near", "perturbed"), ("forget", "default"))  # fmt: skip
LISTED = 10  # n-grams of a list that are shown
SURE = 0.01  # p of a drop of which a share is told
HOLDS = 0.05  # p, corrected for a family of claims, below which a verdict stands
RULE = f"""\
A claim is about one number for each method, its effect, given with its 95 % interval. **Seen**: the whole interval lies
where the claim says. **Contrary**: the whole interval lies where it does not. **Not seen**: neither, be it that there
is no effect or that the data are too few to tell. The interval is over seeds and over questions (several about one fact
count as one), texts, or, of what an inserted word does, such words: it speaks of other seeds *and* of other items of
the kind (docs/statistics.md). Where records have no single items, it is over seeds, "of these very questions or texts".
Where there is one seed, or no item that all seeds have, there is none. The claims below one heading, for all methods,
are a family. "Holm" is the verdict after Holm's correction for their number: with a probability of 95 %, none of a
family's corrected verdicts is false.

The best nu, the peak and the lowest point are chosen for each seed from the other seeds, on one half of the questions
(alternating blocks of four): the best nu for retained knowledge under perturbation less forgotten knowledge, the others
for the former. Every effect of accuracy is measured on the other half. Where several coefficients or layers of a method
have runs with and without RNA, the one with most runs is judged, whatever came of them.

{MARGINS}

Not judged: that MaxLogit becomes normally distributed (section 6.3), that tokens with more random states make for more
random predictions (section 4.2), that robustness saturates before it falls (section 6.6)."""


def document(evidence: Evidence, title: str, preface: str = "") -> str:
    """The page: what was run, the rule, the verdicts, accuracies and theorems; `preface` (Markdown) comes first.

    Raises UserError if no method has models both with and without RNA.
    """
    subjects = evidence.subjects
    if not subjects:
        raise UserError("no method has finished runs without RNA and with it, alike in all else: nothing to judge.")
    on_questions = [_verdicts, _over_methods, _accuracies, _drops, _every_nu]
    tables = [
        _runs(evidence, subjects),
        *([make(subjects) for make in on_questions] if (evidence.material.means["measure"] == "acc").any() else []),
        *_on_texts(evidence),
        *rivals.tables(evidence),
        *tokens.tables(evidence, judged),
        *_ngrams(subjects),
        *_under_attack(evidence),
        *_theory(subjects),
    ]
    warnings = "".join(f"\n**Note:** {one_line(warning)}\n" for warning in evidence.material.warnings)
    head = "\n\n".join(part for part in (f"# {title}", preface.strip(), RULE) if part)
    return "\n".join([f"{head}\n{warnings}", *(as_text(table, "md") for table in tables)])


def _runs(evidence: Evidence, subjects: Sequence[Subject]) -> Table:
    m = evidence.material
    done = m.about[(m.about["status"] == "done") & (m.about["world"] == m.world)]
    lost = len(m.about) - len(done)
    more = f" ({lost} more are unfinished, failed, or of another model or other questions)" if lost else ""
    model = m.runs[int(done["number"].iloc[0])].identity["model"]["name"]
    note = f"Written by `unlearn claims` from {len(done)} runs{more} of the model {model}."
    rows = []
    for s in subjects:
        runs = m.runs_of(s.plain)
        layer = next(iter(runs.values())).identity["model"]["layer"]
        nus = ", ".join(f"{nu:g}" + ("" if nu in s.compared else " (too few seeds)") for nu in s.by_nu)
        chosen = [nu for seed, nu in s.best_nu.items() if seed in s.seeds]
        best = ", ".join(f"{nu:g} ({chosen.count(nu)} of {len(chosen)} seeds)" for nu in sorted(set(chosen)))
        values = ", ".join(f"{value:g}" for value in s.by_coefficient)
        rows.append(
            {
                "method": s.method,
                "layer": layer,
                "seeds without RNA": ", ".join(map(str, runs)),
                "nu": nus,
                "seeds that all nu have": ", ".join(map(str, sorted(s.seeds))),
                "best nu": best or "–",
                "coefficient": f"{s.coefficient} = {values}" if s.coefficient else "–",
            }
        )
    return Table("runs", "The runs", note, pd.DataFrame(rows))


def judged(claims: Sequence[Claim], methods: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row for each claim, with a verdict for each method, of what its effect is computed from: one family."""
    effects = {(claim, method): claim.effect(of) for claim in claims for method, of in methods.items()}
    p = {key: p for key, effect in effects.items() if not math.isnan(p := key[0].p(effect))}
    corrected = dict(zip(p, holm(list(p.values())), strict=True))
    return [
        {
            "claim": f"{claim.says} ({claim.place})",
            "effect": f"{claim.measured}, {claim.unit}",
            **{m: _cell(claim, effects[claim, m], corrected.get((claim, m), math.nan)) for m in methods},
        }
        for claim in claims
    ]


def _cell(claim: Claim, effect: Contrast, corrected: float) -> str:
    """`corrected`: p after Holm's correction."""
    verdict = claim.verdict(effect)
    if verdict == NOT_MEASURED:
        return f"{verdict}: {effect.why_not}"
    digits = 1 if claim.unit.startswith("points") else 2
    interval = f"{effect.low:+.{digits}f} .. {effect.high:+.{digits}f}"
    holds = "" if verdict == NOT_SEEN else f"; Holm: {verdict if corrected < HOLDS else NOT_SEEN}"
    return f"**{verdict}** {effect.difference:+.{digits}f} ({interval}; {effect.over}{holds})"


def _verdicts(subjects: Sequence[Subject]) -> Table:
    rows = judged(CLAIMS, {s.method: s for s in subjects})
    return Table("claims", "The claims", "Each claim's effect, with its 95 % interval.", pd.DataFrame(rows))


def _on_texts(evidence: Evidence) -> list[Table]:
    """None if no run has held-out texts."""
    methods = texts.by_method(evidence)
    rows = judged(texts.CLAIMS if methods else (), methods)
    note = (
        "Each claim's effect, with its 95 % interval. Forgotten texts tell how much was forgotten. At equal "
        "forgetting: each run with RNA is compared with what runs without RNA of the same seed, of any c, beta and "
        "alpha and else alike, have at the same amount of forgetting, by interpolation between neighbours, text by "
        "text; the mean over a seed's runs is its value. The texts that tell how much was "
        "forgotten are among those that the interval is over."
    )
    return [Table("texts", "On held-out texts", note, pd.DataFrame(rows))] if rows else []


def _ngrams(subjects: Sequence[Subject]) -> list[Table]:
    """The lists of n-grams that models without RNA were asked with; none if there are none."""
    rows, files = [], []
    for s in subjects:
        if (lists := _lists_of(s)) is not None:
            file, sizes = lists
            files.append(f"{s.method}: {file}")
            for query, (n, kind) in NGRAM_QUERIES.items():
                if query != f"ngram-{NGRAM_SIZES[0]}":  # that is similarity-most
                    ngrams = sizes[str(n)].of_kind(kind)
                    first = "; ".join(f"{entry.ngram} ({entry.similarity:.2f})" for entry in ngrams[:LISTED])
                    rows.append({"method": s.method, "list": query, "n-grams": len(ngrams), "the first": first})
    if not rows:
        return []
    note = (
        f"The first {LISTED} n-grams of each list, with the similarity to their document (eval.ngrams). ngram-"
        f"{NGRAM_SIZES[0]} is similarity-most. The whole lists: {', '.join(files)}."
    )
    columns = ["list", "n-grams", "the first"]
    table = pd.DataFrame(rows).groupby(columns, sort=False)["method"].agg(", ".join).reset_index()
    return [Table("ngrams", "The n-grams", note, table[["method", *columns]])]


def _lists_of(s: Subject) -> tuple[str, Sizes] | None:
    """The first lists of n-grams of a method's runs without RNA, and their file below the folder of runs."""
    m = s.evidence.material
    for run in m.runs_of(s.plain).values():
        for evaluation in run.evaluations:
            file = evaluation.folder / NGRAMS
            if file.is_file():
                with m.reading(run):
                    return str(file.relative_to(run.folder.parent)), read_ngrams(file)
    return None


def _under_attack(evidence: Evidence) -> list[Table]:
    """None if no run was attacked."""
    methods = attacks.by_method(evidence)
    rows = judged(attacks.claims(methods), methods)
    note = (
        "What an attack brings back at its best level (chosen on one half of the items, measured on the other), "
        "against the same model without an attack: points of accuracy on what was to be forgotten, with the best nu; "
        "or nats a token on held-out texts to forget, at equal forgetting. Attacks leave no record of single "
        "questions or texts, only of halves of them."
    )
    return [Table("attacks", "Under attack", note, pd.DataFrame(rows))] if rows else []


def _over_methods(subjects: Sequence[Subject]) -> Table:
    rows = judged([OVER_METHODS], {"verdict": subjects[0]})
    note = (
        "Each method's own means taken off both; Fisher's 95 % interval, with a degree of freedom less for each mean, "
        "over models, of these very questions."
    )
    return Table("over_methods", "Over all methods", note, pd.DataFrame(rows))


def _accuracies(subjects: Sequence[Subject]) -> Table:
    rows = []
    for s in subjects:
        rna = [] if s.usual_nu is None else [(f"nu = {s.usual_nu:g}", s.compared[s.usual_nu])]
        for name, setting in [("base", None), ("none", s.plain), *rna]:
            row = {"method": s.method if setting is None else "", "RNA": name}
            rows.append(row | {f"{role}, {query}": _accuracy(s, setting, role, query) for role, query in SHOWN})
    note = (
        "Accuracies in %, on all questions: means over seeds with 95 % intervals, of these very questions, and the "
        "number of seeds (of one seed, the interval is over questions). nu is the one that most seeds choose."
    )
    return Table("accuracies", "What was measured", note, pd.DataFrame(rows))


def _accuracy(s: Subject, setting: Setting | None, role: str, query: str) -> str:
    means = s.evidence.material.means
    of = means[(means["role"] == role) & (means["query"] == query) & (means["task"] == MEAN)]
    of = of[(of["measure"] == "acc") & (of["against"] == "")]
    of = of[(of["setting"] == (setting or s.plain)) & (of["model"] == ("unlearned" if setting else "base"))]
    if of.empty:
        return "–"
    row = of.iloc[0]
    return f"{row['mean']:.1f}" + (f" ({row['low']:.1f} .. {row['high']:.1f}; {row['seeds']})" if setting else "")


def _drops(subjects: Sequence[Subject]) -> Table:
    rows = []
    for s in subjects:
        plain, beside, back = stumble(s), stumble_beside_rna(s), won_back(s)
        share = _share(back, beside)
        cells = {"drop without RNA": _drop(plain), "of it RNA takes away": _drop(back), "recovered": share}
        rows.append({"method": s.method, **cells})
    note = (
        "Drop: retained knowledge, default less perturbed, in points, beyond the base model's, over seeds and "
        "questions. Recovered: the share of the drop that RNA takes away, on the seeds that have both; where the "
        f"drop's p is below {SURE:g}."
    )
    return Table("drops", "What RNA takes away", note, pd.DataFrame(rows))


def _share(back: Contrast, drop: Contrast) -> str:
    is_sure = drop.difference > 0 and drop.p(0) < SURE and not back.why_not
    return f"{100 * back.difference / drop.difference:.0f} %" if is_sure else "–"


def _every_nu(subjects: Sequence[Subject]) -> Table:
    rows = []
    for s in subjects:
        for nu, setting in s.compared.items():
            drop, back, remembered = at_nu(s, setting)
            cells = {"of the drop RNA takes away": _drop(back), "recovered": _share(back, drop)}
            cells |= {"forgotten knowledge comes back": _drop(remembered)}
            rows.append({"method": s.method, "nu": f"{nu:g}", **cells})
    note = (
        "As above, for every nu, so that nothing is chosen; the last column is accuracy on what was to be forgotten, "
        "with RNA less without."
    )
    return Table("every_nu", "What every nu takes away", note, pd.DataFrame(rows))


def _drop(c: Contrast) -> str:
    if math.isnan(c.difference):
        return "–"
    return f"{c.difference:.1f} ({c.low:.1f} .. {c.high:.1f}; {c.seeds} seeds)"


def _theory(subjects: Sequence[Subject]) -> list[Table]:
    """None if there are no measurements."""
    measured = theories(subjects)
    if not measured:
        return []
    rows = []
    for theorem in THEOREMS:
        cells, judged = [], []
        for name, (trained, theory) in measured.items():
            if trained == theorem.trained:
                try:
                    theorem.holds(theory)
                    cells.append(f"{name}: {theorem.measured(theory)}")
                    judged.append(theory)
                except Exception as error:  # of another version, or damaged
                    cells.append(f"{name}: theory.json lacks what this needs ({describe(error)})")
        rows.append(
            {
                "claim": f"{theorem.says} ({theorem.place})",
                "seen if": theorem.rule,
                "verdict": f"**{theorem.verdict(judged)}**" if judged else NOT_MEASURED,
                "measured": "; ".join(cells),
            }
        )
    note = (
        "Measured by `unlearn theory` on perturbed queries of the retain role; in brackets what the formula "
        f"says. {SEEN.capitalize()}: in every run that was measured. Contrary: in none, beyond what intervals leave in "
        f"doubt. Else {NOT_SEEN}."
    )
    return [Table("theorems", "The theorems", note, pd.DataFrame(rows))]
