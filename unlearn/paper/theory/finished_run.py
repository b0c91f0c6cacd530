"""A finished run for the theorems: its configuration, its questions in two kinds of query, its model in float32."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lm_eval.api.task import Task
from transformers import PreTrainedModel

from unlearn.config.schema import Config
from unlearn.errors import UserError
from unlearn.evaluation.scorer import Scorer
from unlearn.evaluation.suite import Suite
from unlearn.models.delta import apply_delta, load_delta
from unlearn.models.group import ModelGroup
from unlearn.models.loading import BALANCED, Source, load_tokenizer, load_whole
from unlearn.records.names import is_asked
from unlearn.runs.evaluation import run_config
from unlearn.runs.folder import RunFolder, same_inputs
from unlearn.runs.inputs import check_memory, load_evaluation_inputs


@dataclass(frozen=True)
class FinishedRun:
    """Folder, run.json, and the configuration with the retain role's tasks, in default and perturbed queries."""

    folder: Path
    record: dict[str, Any]
    config: Config

    @property
    def method(self) -> str:
        """The method's name and its layer."""
        return f"{self.config.method['name']} at layer {self.config.model.layer}"


@dataclass(frozen=True)
class Question:
    """One question's token ids up to the predicted position, in both queries, and the right answer's first token."""

    task: str
    number: int
    default: list[int]
    perturbed: list[int]
    answer: int


def read_run(folder: Path, limit: int, *, allow_code: bool = False) -> FinishedRun:
    """Read a finished run, of which so many questions are to be asked. With `allow_code`, its record may name code.

    Raises UserError if there is no finished run, or its evaluation asks no perturbed queries about retained knowledge,
    and for an adopted checkpoint whose nu or layer is not known.
    """
    run = RunFolder(folder)
    run.check_done()
    identity = run.record.get("identity", {})
    for group, key in (("rna", "nu"), ("model", "layer")):
        if "adopted" in identity and key not in identity[group]:
            raise UserError(
                f"{folder}: {group}.{key} is not known, of which the theorems are. Adopt it with {group}.{key}."
            )
    config = run_config(run, [], allow_code=allow_code)
    evaluation = config.eval
    tasks = evaluation.tasks.get("retain")
    if not tasks or "perturbed" not in evaluation.queries or not is_asked(evaluation.asked_of, "perturbed", "retain"):
        raise UserError(f"{folder}: its evaluation asks no perturbed queries of the retain role, which are measured.")
    config.eval = replace(
        evaluation,
        tasks={"retain": tasks},
        texts=replace(evaluation.texts, corpora={}),
        queries=["default", "perturbed"],
        asked_of={},
        limit=None,
        subset=limit,
        maxlogit=replace(evaluation.maxlogit, tokens=0),
        every=None,
    )
    return FinishedRun(folder, run.record, config)


def check_counterpart(rna: FinishedRun, rm: FinishedRun) -> list[str]:
    """What two runs differ in besides RNA. Raises UserError unless the second is the first without RNA."""
    if rna.config.rna.nu == 0:
        raise UserError(
            f"{rna.folder}: trained without RNA (rna.nu=0); --against compares an RNA run with one without."
        )
    if rm.config.rna.nu != 0:
        raise UserError(
            f"--against {rm.folder}: trained with RNA (rna.nu={rm.config.rna.nu:g}); take one with rna.nu=0."
        )
    if rna.record["inputs"].get("model") != rm.record["inputs"].get("model"):
        raise UserError(f"--against {rm.folder}: it has another base model than {rna.folder}.")
    if rna.method != rm.method:
        raise UserError(f"--against {rm.folder}: it trained {rm.method}, and {rna.folder} {rna.method}.")
    keys = ("method", "data", "train", "loss", "seed")
    return [key for key in keys if rna.record["identity"].get(key) != rm.record["identity"].get(key)]


def load_suite_of(run: FinishedRun) -> Suite:
    """The questions, before any weight is loaded.

    Raises UserError if the base model is not that of the run, or the memory cannot hold it in float32.
    """
    check_memory(run.config, replace(Source.of(run.config.model), dtype="float32"))  # as `load_unlearned` makes it
    inputs = load_evaluation_inputs(run.config)
    if not same_inputs(run.record, inputs.hashes, ("model",)):
        raise UserError(f"{inputs.source.path}: the model there is not the one that {run.folder} was trained from.")
    return inputs.asked.suite


def load_unlearned(run: FinishedRun) -> PreTrainedModel:
    """The run's model in float32, since rounding to bfloat16 would hide small noise."""
    source = Source.of(run.config.model)
    if source.device == BALANCED:  # offloaded layers cannot be cast afterwards
        source = replace(source, dtype="float32")
    model = load_whole(source)
    apply_delta(model, *load_delta(run.folder / "delta.safetensors"))
    return plain_kernels(model.float())


def plain_kernels(model: PreTrainedModel) -> PreTrainedModel:
    """The model with eager attention and experts, which have derivatives in both modes; fused kernels do not."""
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")
    return model


def questions(run: FinishedRun, suite: Suite, model: PreTrainedModel) -> list[Question]:
    """The questions as token ids, encoded and cut on the left as in the evaluation."""
    scorer = Scorer(ModelGroup(model), load_tokenizer(Source.of(run.config.model)), 1)
    encoded = []
    for name in suite.tasks["default"]["tasks"]:
        default, perturbed = (
            dict(_right_answers(suite.tasks[query]["tasks"][name])) for query in ("default", "perturbed")
        )
        for number, pair in default.items():
            (ids, answer), (changed, same) = (scorer._encode_pair(*p) for p in (pair, perturbed[number]))
            assert answer == same, (name, number)  # only wrong options are replaced
            max_length = scorer.max_length
            encoded.append(Question(name, number, ids[-max_length:], changed[-max_length:], answer[0]))
    return encoded


def _right_answers(task: Task) -> Iterator[tuple[int, tuple[str, str]]]:
    """(number of the document, (prompt, right answer)) of a multiple-choice task, as lm-eval scores it."""
    if task.OUTPUT_TYPE != "multiple_choice":
        raise UserError(f"task {task.task_name}: not multiple choice, so it has no right answer to take the loss of.")
    for request in task.instances:
        gold = task.doc_to_target(request.doc)
        if isinstance(gold, str):
            gold = task.doc_to_choice(request.doc).index(gold)
        if request.idx == gold:
            yield request.doc_id, request.args
