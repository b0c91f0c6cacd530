"""Reading a finished run for the theorems: its configuration, its questions in two queries, its model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from lm_eval.api.task import Task
from transformers import PreTrainedModel

from unlearn.analysis.compare import read_record
from unlearn.config.identity import name_of
from unlearn.config.schema import Config, EvalConfig
from unlearn.config.settle import settle
from unlearn.errors import UserError, nearest
from unlearn.evaluate.scorer import Scorer
from unlearn.evaluate.suite import Suite
from unlearn.models.delta import apply_delta, load_delta
from unlearn.models.group import ModelGroup
from unlearn.models.loading import BALANCED, Source, load_tokenizer, load_whole
from unlearn.runs.evaluation import recorded_config
from unlearn.runs.evaluations import in_role
from unlearn.runs.folder import same_inputs
from unlearn.runs.inputs import check_memory, load_evaluation_inputs


@dataclass(frozen=True)
class FinishedRun:
    """Folder, run.json, and the configuration with one role's tasks in the default and one other query."""

    folder: Path
    record: dict[str, Any]
    config: Config
    query: str
    role: str


@dataclass(frozen=True)
class Question:
    """One question's token ids up to the predicted position, in both queries, and the right answer's first token."""

    task: str
    number: int
    default: list[int]
    perturbed: list[int]
    answer: int


def read_run(folder: Path, query: str, role: str, limit: int, *, trust_remote_code: bool = False) -> FinishedRun:
    """Read a finished run. Raises UserError, in a line, if there is none, or it was not asked that role and query."""
    record = read_record(folder)
    if record.get("status") != "done":
        raise UserError(f"{folder}: the run is not finished (its status is {record.get('status')!r}).")
    if query == "default":
        raise UserError("--query default: choose one that changes options, such as perturbed.")
    evaluation = _evaluation_with(record, query, role, folder)
    raw = recorded_config(folder, record, trust_remote_code=trust_remote_code)
    raw.eval = {
        **evaluation,
        "tasks": {role: evaluation["tasks"][role]},
        "queries": ["default", query],
        "asked_of": {},
        "limit": None,
        "subset": limit,
        "maxlogit": {"roles": [], "queries": [], "tokens": 0},
    }
    return FinishedRun(folder, record, settle(raw), query, role)


def _evaluation_with(record: dict[str, Any], query: str, role: str, folder: Path) -> dict[str, Any]:
    """The first evaluation of a run, its own or a later one, that asked this role this kind of query."""
    known: list[str] = []
    for evaluation in (record["config"]["eval"], *record.get("evaluations", [])):
        roles = [r for r in evaluation["tasks"] if in_role(evaluation, query, r)]
        if role in roles:
            return {key.name: evaluation[key.name] for key in fields(EvalConfig) if key.name in evaluation}
        known += roles
    if known:
        listed = ", ".join(dict.fromkeys(known))
        raise UserError(f"--role {role}: the run was asked {query} queries of {listed}.{nearest(role, known)}")
    raise UserError(f"{folder}: the run was asked no {query} query. `unlearn evaluate {folder} eval=NAME` asks it.")


def _recorded_words(record: dict[str, Any], query: str) -> str | None:
    """The hash of the words that options became in the run's evaluation; None for runs that lack it."""
    for words in (
        record.get("inputs", {}).get("query_words"),
        *(e.get("query_words") for e in record.get("evaluations", [])),
    ):
        if isinstance(words, dict) and query in words:
            return words[query]
    return None


def check_delta(run: FinishedRun) -> None:
    """Raise UserError if the delta in a run's folder is another run's, or of another layer."""
    file = run.folder / "delta.safetensors"
    _, metadata = load_delta(file)
    trained = run.record.get("training_from", name_of(run.record["identity"]))
    name = f"{run.config.method['name']}-{run.config.model.name}-{trained.rpartition('-')[2]}"
    for key, expected in (("layer", str(run.config.model.layer)), ("run", name)):
        if metadata.get(key) != expected:
            raise UserError(
                f"{file}: it is of {key} {metadata.get(key)}, and run.json beside it is of {key} {expected}."
            )


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
    bases = [run.record.get("inputs", {}).get("model") for run in (rna, rm)]
    if bases[0] != bases[1]:
        raise UserError(f"--against {rm.folder}: its base model is another one than that of {rna.folder}.")
    ours, theirs = (f"{run.config.method['name']} at layer {run.config.model.layer}" for run in (rna, rm))
    if ours != theirs:
        raise UserError(f"--against {rm.folder}: it is of {theirs}, and {rna.folder} of {ours}.")
    keys = ("method", "data", "train", "loss", "seed")
    return [key for key in keys if rna.record["identity"][key] != rm.record["identity"][key]]


def load_suite_of(run: FinishedRun) -> Suite:
    """The questions, before any weight is loaded.

    Raises UserError if model or words are not those of the run, or the memory cannot hold the model in float32.
    """
    check_memory(run.config, replace(Source.of(run.config.model), dtype="float32"))  # as `load_unlearned` makes it
    inputs = load_evaluation_inputs(run.config)
    if not same_inputs(run.record, inputs.hashes, ("model", "checkpoint")):
        raise UserError(f"{inputs.source.path}: the model there is not the one that {run.folder} was trained from.")
    expected = _recorded_words(run.record, run.query)
    if expected is not None and inputs.questions.word_hashes[run.query] != expected:
        raise UserError(f"{run.folder}: the words of its {run.query} queries have changed since (eval.forget_tokens).")
    return inputs.questions.suite


def load_unlearned(run: FinishedRun) -> PreTrainedModel:
    """The run's model in float32, since rounding to bfloat16 would hide small noise."""
    source = replace(Source.of(run.config.model), compile=False)
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
    found = []
    for name in suite.tasks["default"]["tasks"]:
        default, perturbed = (dict(_right_answers(suite.tasks[q]["tasks"][name])) for q in ("default", run.query))
        for number, pair in default.items():
            (ids, answer), (changed, same) = (scorer._encode_pair(*p) for p in (pair, perturbed[number]))
            assert answer == same, (name, number)  # only wrong options are replaced
            most = scorer.max_length
            found.append(Question(name, number, ids[-most:], changed[-most:], answer[0]))
    return found


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
