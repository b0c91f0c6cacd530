"""Evaluating a model: accuracies and standard errors by lm-evaluation-harness, paired tests, MaxLogit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lm_eval.evaluator import evaluate as harness_evaluate
from transformers import PreTrainedTokenizerBase

from unlearn.evaluate import texts
from unlearn.evaluate.journal import Journals
from unlearn.evaluate.maxlogit import max_logits
from unlearn.evaluate.scorer import Scorer
from unlearn.evaluate.statistics import Paired, PairedMeans, nats_a_token, paired, paired_means
from unlearn.evaluate.suite import Suite
from unlearn.models.group import ModelGroup
from unlearn.screen import say
from unlearn.storage.files import write_atomically

STDERR_DRAWS = 100  # bootstrap samples for standard errors without a closed form (accuracy has one)


@dataclass(frozen=True)
class MaxLogitPlan:
    """The roles and kinds of query that MaxLogit is measured on, and the number of tokens (0: off)."""

    roles: list[str] = field(default_factory=list)
    queries: list[str] = field(default_factory=list)
    tokens: int = 0


@dataclass(frozen=True)
class Answers:
    """A model's answers: {"{model}/{task}/{query}/{metric}": value}, the record of each question, other files."""

    metrics: dict[str, float]
    samples: dict[str, list[dict[str, Any]]]  # "{model}/{task}/{query}" -> records
    files: dict[str, bytes] = field(default_factory=dict)  # name inside samples/ -> content

    def write_samples(self, folder: Path) -> None:
        """Write `folder`/MODEL/TASK/QUERY.jsonl and, if it was measured, QUERY.maxlogit.parquet."""
        for name, records in self.samples.items():
            write_atomically(folder / f"{name}.jsonl", "".join(json.dumps(r) + "\n" for r in records))
        for name, content in self.files.items():
            write_atomically(folder / name, content)

    def nats_a_token(self, task: str, label: str, query: str) -> list[float]:
        """Each held-out text's mean negative log-likelihood, in nats a token."""
        return nats_a_token(self.samples[f"{label}/{task}/{query}"])

    def correct(self, suite: Suite, name: str, label: str, query: str) -> list[bool]:
        """Whether each question of a task or group was answered correctly, task after task.

        Empty if its tasks say of no question whether it was.
        """
        drawn = suite.drawn_of(name)
        asked = [
            record
            for leaf in suite.leaves[name]
            for record in self.samples[f"{label}/{leaf}/{query}"]
            if leaf not in drawn or record["id"] in drawn[leaf]
        ]
        return [record["correct"] for record in asked] if all("correct" in record for record in asked) else []


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

    Requests longer than the model's context are cut on the left, as lm-eval does, and counted in the metric
    "truncated".

    Args:
        label: "base" or "unlearned", the first part of every name.
        about: what else is to be said of the model on the screen.
        journals: one for each model; what they hold of an interrupted evaluation is not computed again.
    """
    scorer = Scorer(group, tokenizer, tokens_per_batch, journals)
    together = f", {len(group)} runs together" if len(group) > 1 else ""
    which = f", {about}" if about else together
    say(f"Evaluating the {label} model{which}: {', '.join(suite.queries)} queries")
    scorer.prepare(suite.requests(), label)
    found = []
    for number in range(len(group)):
        with scorer.member(number):
            found.append(_answers(scorer, suite, label))
    if scorer.truncated:
        say(f"{len(scorer.truncated)} requests are longer than the model's context and lost their beginning.")
    _measure_max_logits(found, scorer, suite, label, maxlogit, tokens_per_batch, journals)
    return found


def _answers(scorer: Scorer, suite: Suite, label: str) -> Answers:
    """Metrics and samples of the member in use, by lm-eval."""
    answers = Answers({}, {})
    for query, tasks in suite.tasks.items():
        for request in suite.instances(query):
            request.resps, request.filtered_resps = [], {}
        results = harness_evaluate(scorer, tasks, samples=suite.samples, bootstrap_iters=STDERR_DRAWS, log_samples=True)
        assert results is not None
        for task, values in {**results["results"], **_in_proportion(results["results"], tasks, suite)}.items():
            for metric, value in _figures(values).items():
                answers.metrics[f"{label}/{task}/{query}/{metric}"] = value
        for task, by_filter in results["samples"].items():
            once = [sample for sample in by_filter if sample["filter"] == by_filter[0]["filter"]]
            answers.samples[f"{label}/{task}/{query}"] = _sample_records(once, query)
            cut = sum(any(_strings(a) in scorer.truncated for a in sample["arguments"]) for sample in once)
            if cut:
                answers.metrics[f"{label}/{task}/{query}/truncated"] = cut
    for query, asked in suite.passages.items():
        for task, passages in asked.items():
            records = answers.samples[f"{label}/{task}/{query}"] = _measured(scorer, passages, query)
            answers.metrics.update({f"{label}/{task}/{query}/{k}": v for k, v in texts.figures(records).items()})
    answers.metrics.update(against_default(answers, suite, label))
    return answers


def _figures(values: Mapping[str, Any]) -> dict[str, float]:
    """lm-eval's METRIC,FILTER as METRIC; those of a second filter keep their names."""
    found: dict[str, float] = {}
    for key, value in values.items():
        metric = key.partition(",")[0]
        if metric not in ("alias", "sample_len") and isinstance(value, (int, float)):
            found[key if metric in found else metric] = value
    return found


def _in_proportion(results: Mapping[str, Any], tasks: Mapping[str, Any], suite: Suite) -> dict[str, Any]:
    """The figures of groups with tasks of which more was asked for another role: by the sizes of their tasks."""
    if not suite.drawn:
        return {}
    sizes = {name: len(task.eval_docs) for name, task in tasks["tasks"].items()}
    whole = {name: {**results[name], "sample_len": size} for name, size in sizes.items()}
    return {name: group.aggregate(whole) for name, group in tasks["groups"].items()}


def _strings(arguments: Sequence[Any]) -> tuple[Any, ...]:
    """A request's arguments that are text: those of generation have settings, too."""
    return tuple(argument for argument in arguments if isinstance(argument, str))


def _measured(scorer: Scorer, passages: list[texts.Passage], query: str) -> list[dict[str, Any]]:
    """The records of held-out texts, by the member in use."""
    found = scorer.loglikelihood([passage.request for passage in passages], disable_tqdm=True)
    return [
        texts.record(passage, query, loglikelihood, scorer.count_tokens(passage.beginning, passage.rest))
        for passage, (loglikelihood, _) in zip(passages, found, strict=True)
    ]


def _sample_records(samples: Sequence[Mapping[str, Any]], query: str) -> list[dict[str, Any]]:
    """The records of a task's questions, for paired tests.

    They are correct or not only where the task says so of each: in truthfulqa_mc2, for instance, accuracy is a share.
    """
    scores = [sample.get("acc", sample.get("exact_match")) for sample in samples]
    judged = all(score in (0, 1) for score in scores)
    records = [_sample_record(sample, query) for sample in samples]
    for record, score in zip(records, scores, strict=True):
        if judged:
            record["correct"] = bool(score)
        elif score is not None:
            record["score"] = float(score)
    return records


def _sample_record(sample: Mapping[str, Any], query: str) -> dict[str, Any]:
    """The record of one question. Tasks without options have no log-likelihoods and no choice."""
    record: dict[str, Any] = {"id": sample["doc_id"], "query": query}
    responses = sample["filtered_resps"]
    if all(isinstance(response, (tuple, list)) for response in responses):
        loglikelihoods = [float(response[0]) for response in responses]
        record["loglikelihoods"] = loglikelihoods
        record["choice"] = max(range(len(loglikelihoods)), key=loglikelihoods.__getitem__)
    return record


def against_default(answers: Answers, suite: Suite, label: str) -> dict[str, float]:
    """Paired difference, interval and test of every other query against the default one, for tasks and groups.

    The default one need not be asked in this suite, but its samples have to be among the answers.
    """
    found: dict[str, PairedMeans | Paired] = {}

    def both(query: str, *leaves: str) -> bool:
        return query != "default" and all(f"{label}/{leaf}/default" in answers.samples for leaf in leaves)

    for query in suite.tasks:
        for name, leaves in suite.asked(query).items():
            if both(query, *leaves):
                default, other = (answers.correct(suite, name, label, q) for q in ("default", query))
                if default and other:
                    found[f"{name}/{query}"] = paired(default, other)
    for query, tasks in suite.passages.items():
        for task in tasks:
            if both(query, task):
                found[f"{task}/{query}"] = paired_means(
                    *(answers.nats_a_token(task, label, q) for q in ("default", query))
                )
    return {f"{label}/{name}/default_{k}": v for name, result in found.items() for k, v in result.metrics().items()}


def against_base(base: Answers, unlearned: Answers, suite: Suite) -> dict[str, float]:
    """Paired difference, interval and test of the unlearned model against the base model, for every query."""
    found: dict[str, PairedMeans | Paired] = {}
    for query in suite.tasks:
        for name in suite.asked(query):
            before, after = base.correct(suite, name, "base", query), unlearned.correct(suite, name, "unlearned", query)
            if before and after:
                found[f"{name}/{query}"] = paired(before, after)
    for query, tasks in suite.passages.items():
        for task in tasks:
            values = base.nats_a_token(task, "base", query), unlearned.nats_a_token(task, "unlearned", query)
            found[f"{task}/{query}"] = paired_means(*values)
    return {f"unlearned/{name}/base_{k}": v for name, result in found.items() for k, v in result.metrics().items()}


def _measure_max_logits(
    found: list[Answers],
    scorer: Scorer,
    suite: Suite,
    label: str,
    plan: MaxLogitPlan,
    tokens_per_batch: int,
    journals: Sequence[Journals] | None,
) -> None:
    """Add MaxLogit of every planned task and query to each model's answers. Tasks of one query share batches."""
    roles = {**suite.roles, **suite.text_roles}
    parts_of = {name: suite.leaves.get(name, [name]) for role in plan.roles for name in roles.get(role, [])}
    leaves = list(dict.fromkeys(leaf for parts in parts_of.values() for leaf in parts))
    for query in plan.queries if plan.tokens else ():
        prompts = {(leaf, number): prompt for leaf in leaves for number, prompt in suite.prompts(query, leaf).items()}
        measured = max_logits(
            scorer.group,
            scorer.tokenizer,
            list(prompts.values()),
            count=plan.tokens,
            tokens_per_batch=tokens_per_batch,
            label=f"{label}, {query}",
            journals=journals,
        )
        places = {name: [i for i, (leaf, _) in enumerate(prompts) if leaf in parts] for name, parts in parts_of.items()}
        places |= {leaf: [i for i, (other, _) in enumerate(prompts) if other == leaf] for leaf in leaves}
        for answers, values in zip(found, measured, strict=True):
            for name, rows in places.items():
                part = values.of(rows)
                answers.metrics.update({f"{label}/{name}/{query}/{m}": v for m, v in part.metrics().items()})
                if name in leaves:
                    asked = answers.samples[f"{label}/{name}/{query}"]
                    answers.files[f"{label}/{name}/{query}.maxlogit.parquet"] = part.parquet([r["id"] for r in asked])
