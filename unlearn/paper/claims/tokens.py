"""Forget-tokens one by one: what each costs in retained texts, and which of its properties tells that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pandas as pd

from unlearn.analysis.collect import Run
from unlearn.analysis.report import by_word
from unlearn.analysis.report.by_word import KINDS, PROPERTIES, ByWord
from unlearn.analysis.report.figure import Table
from unlearn.errors import UserError, describe
from unlearn.paper.claims.claims import NOT_IN_PAPER, Claim
from unlearn.paper.claims.contrasts import Contrast, judged_by
from unlearn.paper.claims.evidence import Evidence, Subject
from unlearn.records.terms import TERMS, TermProperties, read_terms
from unlearn.runs.evaluation import run_config
from unlearn.runs.folder import RunFolder, same_inputs
from unlearn.screen import say
from unlearn.statistics.intervals import rank_correlation
from unlearn.storage.hashing import json_sha256

Judge = Callable[[Sequence[Claim], Mapping[str, Any]], list[dict[str, str]]]  # rows of verdicts


@dataclass(frozen=True)
class ForgetTokens:
    """The forget-tokens of a method's model without RNA: their costs and properties."""

    costs: ByWord
    terms: Mapping[str, TermProperties]


def _correlation(tokens: ForgetTokens, name: str) -> Contrast:
    """The rank correlation of a property and the cost, over forget-tokens."""
    if not tokens.terms:
        return Contrast(why_not="the properties were not measured (`unlearn claims --terms`)")
    pairs = by_word.pairs(tokens.costs, tokens.terms, name)
    if pairs is None:
        return Contrast(why_not=f"fewer than {by_word.FEWEST} forget-tokens, or all alike")
    seeds = len(next(iter(tokens.costs.values())))
    return judged_by(partial(rank_correlation, *pairs), seeds, f"{len(pairs[0])} forget-tokens")


CLAIMS = tuple(
    Claim(
        says,
        NOT_IN_PAPER,
        f"rank correlation of a forget-token's cost in retained texts, without RNA, and its {PROPERTIES[name]}",
        partial(_correlation, name=name),
        above=0,
        unit="from -1 to 1",
    )
    for name, says in {
        "similarity": "The nearer a forget-token's states are to those of the forget texts, the more it costs.",
        "count": "The more often a forget-token is in the forget texts, the more it costs.",
        "tokens": "The more tokens a forget-token has, the more it costs.",
    }.items()
)


def tables(evidence: Evidence, judged: Judge) -> list[Table]:
    """What each word costs without RNA, and which property tells it; none if no run has words in its texts."""
    m = evidence.material
    costs = by_word.table_of(m, {subject.method: subject.plain for subject in evidence.subjects})
    if costs is None:
        return []
    methods = {
        s.method: ForgetTokens(words["perturbed"], by_word.properties(m, s.plain))
        for s in evidence.subjects
        if "perturbed" in (words := by_word.by_word(m, s.plain))
    }
    note = (
        "Spearman's rank correlation over the forget-tokens. A token's cost is its mean over seeds and texts, beyond "
        "that in the base model. Similarity: of its states at layer l to the mean state of the forget texts, both less "
        "the mean over all corpora."
    )
    costs = replace(costs, title="What each word costs without RNA")
    if not methods:
        return [costs]
    rows = pd.DataFrame(judged(CLAIMS, methods))
    return [costs, Table("word_properties", "Which forget-tokens cost much", note, rows)]


def measure_terms(subjects: Sequence[Subject], *, allow_code: bool = False) -> None:
    """Write the terms.json of each method's first run without RNA, where there is none.

    Runs that have layer, texts and words in common are measured once.
    """
    measured: dict[str, dict[str, TermProperties]] = {}
    for subject in subjects:
        run = next(iter(subject.evidence.material.runs_of(subject.plain).values()))
        try:
            if read_terms(run.folder):
                continue
            key = json_sha256([*(run.identity.get(part) for part in ("model", "data", "eval")), run.record["inputs"]])
            if key not in measured:
                say(f"Properties of inserted words: {run.folder}")
                measured[key] = _measure(run, allow_code=allow_code)
            folder = RunFolder(run.folder)
            content = {term: vars(properties) for term, properties in measured[key].items()}
            with folder.locked():
                folder.lock.write_json(folder.file(TERMS), content)
        except (UserError, RuntimeError) as error:  # of CUDA, too: the others are no worse for it
            say(f"Not measured: {describe(error)}")


def _measure(run: Run, *, allow_code: bool) -> dict[str, TermProperties]:
    """The properties of the words in a run's own evaluation. Raises UserError if its texts or model are others now."""
    from unlearn.evaluation.term_properties import term_properties
    from unlearn.models.cutting import CutModel
    from unlearn.models.loading import load_up_to
    from unlearn.runs.inputs import load_evaluation_inputs, load_topics

    config = run_config(RunFolder(run.folder), [], allow_code=allow_code)
    queries = [query for query in config.eval.queries if query in ("default", *KINDS)]
    no_maxlogit = replace(config.eval.maxlogit, tokens=0)
    config.eval = replace(config.eval, tasks={}, queries=queries, maxlogit=no_maxlogit, every=None)
    inputs = load_evaluation_inputs(config)
    topics = load_topics(config, inputs.tokenizer)
    read = {"model": inputs.model_hash, "data": {topic.name: topic.sha256 for topic in topics}}
    if not same_inputs(run.record, {**read, "texts": inputs.asked.text_hashes}):
        raise UserError(f"{run.folder}: its model, corpora or held-out texts are not what they were.")
    layer = config.model.layer
    cut = CutModel(load_up_to(inputs.source, layer), layer, parameters=config.model.parameters)
    asked = inputs.asked.suite.passages.values()
    passages = [passage for of_query in asked for of_task in of_query.values() for passage in of_task]
    return term_properties(cut, inputs.tokenizer, passages, topics)
