"""Evaluating a model: accuracies and standard errors by lm-evaluation-harness, paired tests, MaxLogit."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lm_eval.evaluator import evaluate as harness_evaluate
from transformers import PreTrainedTokenizerBase

from unlearn.evaluation import texts
from unlearn.evaluation.journal import Journals
from unlearn.evaluation.maxlogit import MaxLogits, max_logits
from unlearn.evaluation.perturb import REPLACED
from unlearn.evaluation.scorer import Scorer
from unlearn.evaluation.suite import Place, Suite
from unlearn.models.group import ModelGroup
from unlearn.records.answers import Answers
from unlearn.records.samples import Sample
from unlearn.records.scores import AGREEMENT, MAXLOGIT_NOT_FINITE, NOT_FINITE, TRUNCATED, Score
from unlearn.screen import say
from unlearn.statistics.paired import Paired, PairedMeans, paired, paired_means

# lm-eval would fork this process, with its threads, for the bootstrap of standard errors; the draws are the same.
os.environ.setdefault("DISABLE_MULTIPROC", "1")
STDERR_DRAWS = 100  # bootstrap samples for standard errors without a closed form (accuracy has one)
UNJUDGED = ("alias", "sample_len")  # entries of lm-eval's results that are no metrics


@dataclass(frozen=True)
class MaxLogitPlan:
    """The roles and kinds of query that MaxLogit is measured on, and the number of tokens (0: off)."""

    roles: list[str] = field(default_factory=list)
    queries: list[str] = field(default_factory=list)
    tokens: int = 0


def evaluate(
    group: ModelGroup,
    tokenizer: PreTrainedTokenizerBase,
    suite: Suite,
    *,
    label: str,
    about: str = "",
    tokens_per_batch: int,
    maxlogit: MaxLogitPlan = MaxLogitPlan(),
    journals: Sequence[Journals] | None = None,
) -> list[Answers]:
    """Evaluate each model of a group on all tasks and queries of a suite.

    Requests longer than the model's context are cut on the left, as lm-eval does, and counted in the measure
    "truncated". Questions and texts with a log-likelihood that is not finite are counted in the measure "not_finite",
    and their task, and the groups that it is a part of, have no other measure.

    Args:
        label: "base" or "unlearned", the `model` of every score and sample.
        about: what else is to be said of the model on the screen.
        journals: one for each model; what they hold of an interrupted evaluation is not computed again.
    """
    scorer = Scorer(group, tokenizer, tokens_per_batch, journals)
    together = f", {len(group)} runs together" if len(group) > 1 else ""
    which = f", {about}" if about else together
    say(f"Evaluating the {label} model{which}: {', '.join(suite.queries)} queries")
    scorer.prepare(suite.requests(), label)
    answers = []
    for number in range(len(group)):
        with scorer.member(number):
            answers.append(_answers(scorer, suite, label))
    if scorer.truncated:
        say(f"{len(scorer.truncated)} requests are longer than the model's context and lost their beginning.")
    answers = _with_max_logits(answers, scorer, suite, label, maxlogit, tokens_per_batch, journals)
    return [replace(own, scores=own.scores + against_default(own, suite, label)) for own in answers]


def _answers(scorer: Scorer, suite: Suite, label: str) -> Answers:
    """Scores and samples of the member in use, by lm-eval."""
    scores: list[Score] = []
    samples: list[Sample] = []
    for query, tasks in suite.tasks.items():
        for request in suite.instances(query):
            request.resps, request.filtered_resps = [], {}
        results = harness_evaluate(scorer, tasks, samples=suite.samples, bootstrap_iters=STDERR_DRAWS, log_samples=True)
        assert results is not None
        figures = {**results["results"], **_in_proportion(results["results"], tasks, suite)}
        asked = {task: _once(by_filter) for task, by_filter in results["samples"].items()}
        hashes = {task: suite.question_hashes(query, task) for task in asked}
        truncated = {task: sum(_is_truncated(scorer, sample) for sample in own) for task, own in asked.items()}
        unanswered = {task: {s["doc_id"] for s in own if not _is_finite(scorer, s)} for task, own in asked.items()}
        for place in suite.places(query):
            if place.task in asked:
                own = asked[place.task], unanswered[place.task], hashes[place.task]
                samples += _samples(label, place, query, *own, suite)
            if place.task in figures:
                n = sum(len(asked[leaf]) for leaf in place.leaves)  # all that were asked, also for another role
                without = sum(len(unanswered[leaf]) for leaf in place.leaves)
                scores += _counted(label, place, query, without, n) or _scores(
                    label, place, query, figures[place.task], n
                )
            if truncated.get(place.task):
                scores.append(_score(label, place, query, TRUNCATED, float(truncated[place.task])))
    for query, passages in suite.passages.items():
        for place in suite.places(query):
            if place.task in passages:
                likelihoods = _measured(scorer, label, place, query, passages[place.task], suite)
                samples += likelihoods
                n, without = len(likelihoods), sum(sample.value is None for sample in likelihoods)
                scores += _counted(label, place, query, without, n) or [
                    _score(label, place, query, measure, value, stderr=stderr, n=n)
                    for measure, value, stderr in texts.figures(likelihoods)
                ]
    return Answers(scores, samples)


def _score(label: str, place: Place, query: str, measure: str, value: float, **rest: Any) -> Score:
    return Score(label, place.role, place.task, place.part_of, query, measure, value, **rest)


def _counted(label: str, place: Place, query: str, without: int, n: int) -> list[Score]:
    """The count of questions or texts without a finite log-likelihood, of n; none if there are none."""
    return [_score(label, place, query, NOT_FINITE, float(without), n=n)] if without else []


def _scores(label: str, place: Place, query: str, figures: Mapping[str, Any], n: int) -> Iterator[Score]:
    """lm-eval's METRIC,FILTER and METRIC_stderr,FILTER as METRIC; those of a second filter keep their names.

    A metric that is not finite, such as a perplexity beyond what a float holds, is named and left out.
    """
    measures: set[str] = set()
    for name, value in figures.items():
        metric, _, rule = name.partition(",")
        if metric in UNJUDGED or metric.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        measure = name if metric in measures else metric
        measures.add(metric)
        if not math.isfinite(value):
            say(f"{label} model, {place.task}, {query}: {measure} is {value} and is left out.")
            continue
        stderr = figures.get(f"{metric}_stderr,{rule}" if rule else f"{metric}_stderr")
        if not isinstance(stderr, (int, float)) or not math.isfinite(stderr):
            stderr = None  # lm-eval has none for some groups
        yield _score(label, place, query, measure, float(value), stderr=stderr, n=n)


def _in_proportion(results: Mapping[str, Any], tasks: Mapping[str, Any], suite: Suite) -> dict[str, Any]:
    """The figures of groups, weighted by the sizes of their tasks, where another role asked more of a task."""
    if not suite.drawn:
        return {}
    sizes = {name: len(task.eval_docs) for name, task in tasks["tasks"].items()}
    whole = {name: {**results[name], "sample_len": size} for name, size in sizes.items()}
    return {name: group.aggregate(whole) for name, group in tasks["groups"].items()}


def _once(samples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """lm-eval's samples of a task, which it repeats for each filter, by the first one."""
    return [sample for sample in samples if sample["filter"] == samples[0]["filter"]]


def _is_finite(scorer: Scorer, sample: Mapping[str, Any]) -> bool:
    """Whether all that the member in use answered to this sample came from finite numbers."""
    contexts = {arguments[0] for arguments in sample["arguments"]}
    return all(map(math.isfinite, _numbers(sample["resps"]))) and not contexts & scorer.not_finite


def _numbers(answers: Any) -> Iterator[float]:
    """The numbers in lm-eval's lists of answers: log-likelihoods, alone or in a tuple with what is no number."""
    if isinstance(answers, float):
        yield answers
    elif isinstance(answers, (list, tuple)):
        for answer in answers:
            yield from _numbers(answer)


def _is_truncated(scorer: Scorer, sample: Mapping[str, Any]) -> bool:
    """Whether a request of this sample lost its beginning. Requests of generation have settings beside their text."""
    return any(
        tuple(argument for argument in arguments if isinstance(argument, str)) in scorer.truncated
        for arguments in sample["arguments"]
    )


def _samples(
    label: str,
    place: Place,
    query: str,
    asked: Sequence[Mapping[str, Any]],
    unanswered: Collection[int],
    hashes: Mapping[int, str],
    suite: Suite,
) -> Iterator[Sample]:
    """The questions of a task that were drawn for this role.

    They are correct or not only where the task says so of each: in truthfulqa_mc2, for instance, accuracy is a share.
    What is said of those that are unanswered, by their number, counts for nothing.
    """
    accuracies = [sample.get("acc", sample.get("exact_match")) for sample in asked]
    judgements = [None if s["doc_id"] in unanswered else j for s, j in zip(asked, accuracies, strict=True)]
    is_judged = all(judgement in (0, 1) for judgement in judgements if judgement is not None)
    for sample, judgement in zip(asked, judgements, strict=True):
        number = sample["doc_id"]
        if suite.is_drawn(place.role, place.task, number):
            options = _option_likelihoods(sample)
            is_chosen = options is not None and number not in unanswered
            yield Sample(
                label,
                place.role,
                place.task,
                query,
                number,
                hashes[number],
                correct=None if judgement is None or not is_judged else bool(judgement),
                score=None if is_judged or judgement is None else float(judgement),
                choice=max(range(len(options)), key=options.__getitem__) if is_chosen and options else None,
                loglikelihoods=options,
                inserted=". ".join(sample["doc"].get(REPLACED, ())) or None,
                fact=suite.fact(query, place.task, sample["doc"]),
            )


def _option_likelihoods(sample: Mapping[str, Any]) -> list[float] | None:
    """The log-likelihood of each option; None for a task without options."""
    responses = sample["filtered_resps"]
    if all(isinstance(response, (tuple, list)) for response in responses):
        return [float(response[0]) for response in responses]
    return None


def _measured(
    scorer: Scorer, label: str, place: Place, query: str, passages: Sequence[texts.Passage], suite: Suite
) -> list[Sample]:
    """The likelihoods of held-out texts, by the member in use."""
    results = scorer.loglikelihood([passage.request for passage in passages], disable_tqdm=True)
    hashes = suite.question_hashes(query, place.task)
    return [
        Sample(
            label,
            place.role,
            place.task,
            query,
            passage.id,
            hashes[passage.id],
            nats=-loglikelihood,
            tokens=scorer.count_tokens(passage.beginning, passage.rest),
            inserted=passage.inserted,
            choices=scorer.choices(passage.request),
        )
        for passage, (loglikelihood, _) in zip(passages, results, strict=True)
    ]


def against_default(answers: Answers, suite: Suite, label: str, measure: str | None = None) -> list[Score]:
    """Paired difference, interval and test of every other query against the default one, for tasks and groups.

    The default one need not be asked in this suite, but its samples have to be among the answers. `measure`: AGREEMENT;
    None: what `Sample.value` is.
    """
    differences = []
    for query in suite.queries:
        for place in suite.places(query) if query != "default" else ():
            of = measure or _measure_of(suite, place, query)
            about = _score(label, place, query, of, math.nan, against="default")
            default, other = (
                answers.values(place.role, place.leaves, q, measure or "value") for q in ("default", query)
            )
            differences += _difference(default, other, about, answers.facts(place.role, place.leaves, query))
    return differences


def against_base(base: Answers, unlearned: Answers, suite: Suite) -> list[Score]:
    """Paired difference, interval and test of the unlearned model against the base model, for every query."""
    differences = []
    for query in suite.queries:
        for place in suite.places(query):
            before, after = (answers.values(place.role, place.leaves, query) for answers in (base, unlearned))
            about = _score("unlearned", place, query, _measure_of(suite, place, query), math.nan, against="base")
            differences += _difference(before, after, about, unlearned.facts(place.role, place.leaves, query))
    return differences


def _difference(
    before: Sequence[float], after: Sequence[float], about: Score, facts: Sequence[Hashable]
) -> list[Score]:
    """The paired difference as a score like `about`; none where one of the sides has no values.

    `facts`: what each question asks about.
    """
    if not before or not after:
        return []
    if about.measure in ("nats", AGREEMENT):
        result: Paired | PairedMeans = paired_means(before, after)
    else:
        result = paired([value == 1 for value in before], [value == 1 for value in after], facts)
    return [replace(about, value=result.difference, low=result.low, high=result.high, p=result.p, n=len(before))]


def with_agreement(base: Answers, unlearned: Answers, suite: Suite) -> Answers:
    """The unlearned model's answers with their agreement with the base model's: of each text, and as scores.

    The scores are of places that have a likelihood for every text in both models.
    """
    asked = {(s.role, s.task, s.query, s.id): s for s in base.samples if s.value is not None}
    samples = [_agreeing(asked.get((s.role, s.task, s.query, s.id)), s) for s in unlearned.samples]
    own = Answers(unlearned.scores, samples)
    scores = []
    for query in suite.queries:
        for place in suite.places(query):
            if values := own.values(place.role, place.leaves, query, AGREEMENT):
                mean, error = texts.mean_and_error(values)
                scores.append(_score("unlearned", place, query, AGREEMENT, mean, stderr=error, n=len(values)))
    return replace(own, scores=[*own.scores, *scores, *against_default(own, suite, "unlearned", AGREEMENT)])


def _agreeing(base: Sample | None, sample: Sample) -> Sample:
    """The sample with its agreement, if both models have read this text and have a likelihood for it."""
    if base is None or base.choices is None or sample.value is None or not sample.choices:
        return sample
    same = [a == b for a, b in zip(base.choices, sample.choices, strict=True)]
    return replace(sample, agreement=sum(same) / len(same))


def _measure_of(suite: Suite, place: Place, query: str) -> str:
    """The measure whose values `Sample.value` are."""
    if place.task in suite.passages.get(query, {}):
        return "nats"
    task = suite.tasks[query]["tasks"][place.leaves[0]]
    return "acc" if "acc" in task.aggregation() else "exact_match"


def _with_max_logits(
    answers: list[Answers],
    scorer: Scorer,
    suite: Suite,
    label: str,
    plan: MaxLogitPlan,
    tokens_per_batch: int,
    journals: Sequence[Journals] | None,
) -> list[Answers]:
    """The answers with MaxLogit of every planned role and query. Tasks of one query share batches."""
    for query in plan.queries if plan.tokens else ():
        places = [place for place in suite.places(query) if place.role in plan.roles]
        leaves = dict.fromkeys(leaf for place in places for leaf in place.leaves)
        prompts = {(leaf, number): prompt for leaf in leaves for number, prompt in suite.prompts(query, leaf).items()}
        if not prompts:
            continue
        measured = max_logits(
            scorer.group,
            scorer.tokenizer,
            list(prompts.values()),
            count=plan.tokens,
            tokens_per_batch=tokens_per_batch,
            label=f"{label}, {query}",
            journals=journals,
        )
        rows = {place: [i for i, (leaf, _) in enumerate(prompts) if leaf in place.leaves] for place in places}
        numbers = {question: row for row, question in enumerate(prompts)}
        answers = [
            Answers(
                own.scores + _max_logit_scores(label, query, rows, logits),
                [_with_max_logit(sample, query, plan.roles, numbers, logits) for sample in own.samples],
            )
            for own, logits in zip(answers, measured, strict=True)
        ]
    return answers


def _max_logit_scores(label: str, query: str, rows: Mapping[Place, Sequence[int]], logits: MaxLogits) -> list[Score]:
    """Mean, standard deviation and quantiles of every place, whose prompts are these rows, if all are finite."""
    scores = []
    for place, own in rows.items():
        without = int((~logits.of(own).values_NK.isfinite()).any(dim=1).sum())
        figures = {MAXLOGIT_NOT_FINITE: float(without)} if without else logits.of(own).metrics()
        scores += [
            _score(label, place, query, measure, value, n=len(own))
            for measure, value in figures.items()
            if math.isfinite(value)  # the deviation of a single value is not
        ]
    return scores


def _with_max_logit(
    sample: Sample, query: str, roles: Sequence[str], numbers: Mapping[tuple[str, int], int], logits: MaxLogits
) -> Sample:
    """The sample with its own MaxLogits, if they were measured."""
    row = numbers.get((sample.task, sample.id))
    if row is None or sample.query != query or sample.role not in roles:
        return sample
    values, tokens = logits.values_NK[row].tolist(), logits.tokens_NK[row].tolist()
    return replace(sample, maxlogits=values, maxlogit_tokens=tokens)
