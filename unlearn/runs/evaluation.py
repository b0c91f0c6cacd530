"""Evaluating a finished run again, or a checkpoint, without training."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from unlearn.config.compose import changed, composed, of_model
from unlearn.config.identity import RUNS, identity
from unlearn.config.recorded import ALLOW, foreign_tasks, recorded
from unlearn.config.schema import Config
from unlearn.config.settle import settle
from unlearn.errors import UserError
from unlearn.evaluation.evaluator import Unlearned
from unlearn.evaluation.harness import against_default
from unlearn.evaluation.questions import CACHE, load_questions
from unlearn.models.delta import dtype_of
from unlearn.records.answers import Answers
from unlearn.records.run import RECORD
from unlearn.records.samples import SAMPLES, Sample, read_samples
from unlearn.records.scores import AGREEMENT, check_finite
from unlearn.runs.evaluations import EVALUATIONS, Evaluation, evaluations_of, keep_evaluation
from unlearn.runs.folder import RunFolder, check_results, write_results
from unlearn.runs.inputs import Inputs, load_evaluation_inputs, make_evaluator
from unlearn.storage.files import check_writable
from unlearn.storage.hashing import json_sha256
from unlearn.storage.schema import check_links, leads_out
from unlearn.tracking.terminal import show_result

# Keys that say where the same model is, whether its own code may run, and where the cache is.
WHERE = ("model.path", "model.gguf_file", "model.device", "model.max_memory", "model.trust_remote_code", "output_root")


def evaluate(what: str, overrides: list[str], *, allow_code: bool = False) -> Path:
    """Evaluate a run's folder, a checkpoint, or the model of a configuration (model=NAME). Returns the results' folder.

    With `allow_code`, code that the run's record names may run. Raises UserError if that cannot be done.
    """
    folder = RunFolder(Path(what))
    if folder.record:
        return evaluate_run(folder, overrides, allow_code=allow_code)
    return evaluate_checkpoint([*of_model(what), *overrides])


def run_config(folder: RunFolder, overrides: list[str], *, allow_code: bool = False) -> Config:
    """The configuration of a run with another evaluation (`eval=NAME`), or with keys of its own evaluation changed.

    The base model may have another path or device than before. Raises UserError for overrides of anything else and,
    without `allow_code`, if the evaluation runs code that the record names and this command does not.
    """
    places = tuple(f"{key}{end}" for key in WHERE for end in "=.")  # model.max_memory.cpu=10GiB, too
    place = [override for override in overrides if override.lstrip("+").startswith(places)]
    overrides = [override for override in overrides if override not in place]
    for override in overrides:
        if override.lstrip("+~").partition("=")[0].partition(".")[0] != "eval":
            allowed = f"eval, its keys, and {', '.join(WHERE)}"
            raise UserError(f"{override} is not allowed: for a finished run only {allowed} can be changed.")
    raw = recorded_config(folder.path, folder.record, allow_code=allow_code)
    if any(override.startswith("eval=") for override in overrides):
        raw.eval = composed(overrides).eval
    else:
        changed(raw, overrides)
    changed(raw, place)
    config = settle(raw, trained=True)
    typed = {override.lstrip("+~").partition("=")[0] for override in overrides}
    if not allow_code and not typed & {"eval", "eval.include_path"} and (tasks := foreign_tasks(config)):
        raise UserError(
            f"{folder.file(RECORD)} names code that would run: {tasks}. If you trust it, add {ALLOW}; eval=NAME asks "
            "other questions."
        )
    return config


def recorded_config(folder: Path, record: Mapping[str, Any], *, allow_code: bool = False) -> DictConfig:
    """The configuration in the run.json of a trained run, not yet settled, to use its model again.

    Raises UserError if there is no delta, and for another version of the results.
    """
    check_results(folder, record)
    raw = recorded(record.get("config", {}), folder / RECORD, "config")
    raw.model.dtype = dtype_of(folder / "delta.safetensors")  # auto could mean another dtype on this device
    raw.model.trust_remote_code = allow_code and raw.model.get("trust_remote_code") is True
    raw.output_root = str(_output_root(folder))
    return raw


def _output_root(folder: Path) -> Path:
    """Where the base model's answers are kept: beside a run that lies in OUTPUT_ROOT/runs, else in its folder.

    A record does not say where files are written. Raises UserError for a link that leads elsewhere.
    """
    above = folder.absolute().parent
    root = above.parent if above.name == RUNS else folder
    cache = root / CACHE
    if leads_out(cache, root):
        raise UserError(f"{cache}: this link leads out of {root}. output_root=DIR chooses another place.")
    check_links(cache)
    return root


def evaluate_run(folder: RunFolder, overrides: list[str], *, allow_code: bool = False) -> Path:
    """Evaluate a run again. Returns the folder of the results, RUN/evaluations/NAME.

    Raises UserError, after the results are written, if a model's answers are not finite.
    """
    with folder.locked():
        return _evaluate_run(folder, overrides, allow_code=allow_code)


def _evaluate_run(folder: RunFolder, overrides: list[str], *, allow_code: bool) -> Path:
    config = run_config(folder, overrides, allow_code=allow_code)
    check_writable(folder.file(EVALUATIONS), "The results go there.")
    inputs = load_evaluation_inputs(config)
    name = _name(config, inputs)
    home = folder.file(EVALUATIONS) / name
    partial = folder.file("partial") / name  # the run's own evaluation has its journals in partial/ itself
    model = Unlearned(folder.file("delta.safetensors"), partial, folder.lock)
    [answers] = make_evaluator(config, inputs).evaluate([model])
    if "default" not in config.eval.queries:
        answers = _with_differences(folder, config, inputs, answers)
    questions = inputs.asked
    made = Evaluation(home, asdict(config.eval), questions.suite.hashes, questions.word_hashes, time.time())
    keep_evaluation(folder.lock, made, answers, folder.trained or {}, questions.ngrams)
    folder.lock.remove(partial)
    with suppress(OSError):  # it is not empty
        partial.parent.rmdir()
    show_result(answers.scores, home, None)
    check_finite(answers.scores)
    return home


def _with_differences(folder: RunFolder, config: Config, inputs: Inputs, answers: Answers) -> Answers:
    """The answers with differences from the run's default query, for the questions that the run was asked too."""
    unchanged = replace(config, eval=replace(config.eval, queries=["default"]))
    suite = load_questions(unchanged, inputs.source, inputs.tokenizer).suite
    leaves = [place.task for place in suite.places("default") if place.is_leaf]
    hashes = {leaf: suite.question_hashes("default", leaf) for leaf in leaves}
    asked: dict[tuple[str, str, str], set[int]] = {}
    for sample in answers.samples:
        asked.setdefault((sample.model, sample.role, sample.task), set()).add(sample.id)
    earlier: dict[tuple[str, str, str], dict[int, Sample]] = {}
    for evaluation in evaluations_of(folder.path, folder.record):
        for sample in read_samples(evaluation.folder) if (evaluation.folder / SAMPLES).is_file() else ():
            place = sample.model, sample.role, sample.task
            is_same = hashes.get(sample.task, {}).get(sample.id) == sample.question
            if sample.query == "default" and is_same and sample.id in asked.get(place, ()):
                earlier.setdefault(place, {}).setdefault(sample.id, sample)
    # A task is paired as a whole or not at all.
    whole = [place for place, samples in earlier.items() if samples.keys() == asked[place]]
    default = [earlier[place][number] for place in whole for number in sorted(asked[place])]
    scores = list(answers.scores)
    for label in ("base", "unlearned"):
        both = [sample for sample in (*default, *answers.samples) if sample.model == label]
        for measure in (None, AGREEMENT):
            scores += against_default(Answers([], both), inputs.asked.suite, label, measure)
    return replace(answers, scores=scores)


def _name(config: Config, inputs: Inputs) -> str:
    """The name of an evaluation: NAME-HASH, with the name of its configuration."""
    key = [identity(config)["eval"], config.eval.tokens_per_batch, inputs.hashes]
    return f"{config.eval.name}-{json_sha256(key)[:10]}"


def evaluate_checkpoint(overrides: list[str]) -> Path:
    """Evaluate a configuration's model as the base model, into OUTPUT_ROOT/evaluations; returns the folder."""
    if any(override.startswith("eval=") for override in overrides):
        overrides = ["eval.for_model=null", *overrides]  # it may be an exported model that was taught the same facts
    config = settle(composed(overrides))
    inputs = load_evaluation_inputs(config)
    answers = make_evaluator(config, inputs).evaluate_base()
    folder = Path(config.output_root) / EVALUATIONS / f"{config.model.name}-{_name(config, inputs)}"
    folder.mkdir(parents=True, exist_ok=True)
    write_results(folder, answers, {}, inputs.asked.ngrams)
    show_result(answers.scores, folder, None)
    check_finite(answers.scores)
    return folder
