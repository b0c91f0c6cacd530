"""Evaluating a finished run once more, or a checkpoint, without training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from unlearn.config.compose import changed, composed, of_model
from unlearn.config.identity import identity
from unlearn.config.schema import Config
from unlearn.config.settle import settle
from unlearn.errors import UserError
from unlearn.evaluate.evaluator import Unlearned
from unlearn.evaluate.harness import Answers, against_default
from unlearn.models.delta import dtype_of
from unlearn.runs.evaluations import asked
from unlearn.runs.folder import RunFolder
from unlearn.runs.inputs import Inputs, load_evaluation_inputs
from unlearn.runs.sharing import open_evaluator
from unlearn.screen import say
from unlearn.storage.files import write_json
from unlearn.storage.hashing import json_sha256
from unlearn.storage.lock import FolderLock
from unlearn.tracking.terminal import show_result

# The same model, in another place, or with code of its own.
WHERE = ("model.path", "model.gguf_file", "model.device", "model.max_memory", "model.trust_remote_code")


def evaluate(what: str, overrides: list[str]) -> Path:
    """Evaluate a run's folder, a checkpoint, or the model of a configuration (model=NAME); returns the results' folder.

    Raises UserError if that cannot be done.
    """
    folder = RunFolder(Path(what))
    if folder.record:
        return evaluate_run(folder, overrides)
    return evaluate_checkpoint([*of_model(what), *overrides])


def run_config(folder: RunFolder, overrides: list[str]) -> Config:
    """The configuration of a run, with `eval=NAME` as its evaluation, or with keys of its own one changed.

    Its base model may be in another place now, or on another device. Raises UserError for overrides of anything else.
    """
    places = tuple(f"{key}{end}" for key in WHERE for end in "=.")  # model.max_memory.cpu=10GiB, too
    place = [override for override in overrides if override.lstrip("+").startswith(places)]
    overrides = [override for override in overrides if override not in place]
    for override in overrides:
        if override.lstrip("+~").partition("=")[0].partition(".")[0] != "eval":
            allowed = f"eval, its keys, and {', '.join(WHERE)}"
            raise UserError(f"{override}: of a finished run only {allowed} can be chosen anew.")
    raw = recorded_config(folder.path, folder.record)
    if any(override.startswith("eval=") for override in overrides):
        raw.eval = composed(overrides).eval
    else:
        changed(raw, overrides)
    changed(raw, place)
    return settle(raw)


def recorded_config(folder: Path, record: Mapping[str, Any], *, trust_remote_code: bool = False) -> DictConfig:
    """The configuration of a trained run from its run.json, not yet settled, to use its model once more.

    Code of a checkpoint is not trusted because a run's folder says so. Raises UserError if there is no delta.
    """
    raw = OmegaConf.create(dict(record["config"]))
    raw.model.dtype = dtype_of(folder / "delta.safetensors")  # auto could be another one on this device
    raw.model.trust_remote_code = trust_remote_code
    return raw


def evaluate_run(folder: RunFolder, overrides: list[str]) -> Path:
    """Evaluate a run once more; returns the folder of the results.

    It is the run's own folder, or, if some of these tasks and queries were asked before, a folder inside it. Earlier
    results stay.
    """
    with FolderLock(folder.path):
        folder.read()  # as another process may have left it
        return _evaluate_run(folder, overrides)


def _evaluate_run(folder: RunFolder, overrides: list[str]) -> Path:
    config = run_config(folder, overrides)
    inputs = load_evaluation_inputs(config)
    name = _name(config, inputs)
    partial = folder.file("partial") / name  # beside what the run's own evaluation has left there
    with open_evaluator(config, inputs) as evaluator:
        [result] = evaluator.evaluate([Unlearned(folder.file("delta.safetensors"), partial)])
    before = json.loads(folder.file("metrics.json").read_text()) if folder.file("metrics.json").is_file() else {}
    home = folder.path
    repeated = before.keys() & result.metrics.keys()
    if repeated:
        home = folder.file("evaluations") / name
        _say_what_is_new(config, before, home)
        before = {}
    else:
        for answers in result.answers:
            result.metrics.update(_differences(folder, config, inputs, answers))
    result.write_samples(home / "samples")
    write_json(home / "metrics.json", before | result.metrics)
    folder.record.setdefault("evaluations", []).append(
        {
            **asdict(config.eval),
            "query_words": inputs.questions.word_hashes,
            "text_hashes": inputs.questions.text_hashes,
            "questions": inputs.questions.suite.hashes,
            "folder": str(home.relative_to(folder.path)) if repeated else None,
        }
    )
    folder.write()
    shutil.rmtree(partial, ignore_errors=True)
    with suppress(OSError):  # unless there is more in it
        partial.parent.rmdir()
    show_result(result.metrics, config.eval.roles, config.eval.queries, home, None)
    return home


def _differences(folder: RunFolder, config: Config, inputs: Inputs, answers: Answers) -> dict[str, float]:
    """New kinds of query against the run's default one, if that was asked before about the same questions."""
    now = {"config": {"eval": asdict(config.eval)}, "identity": identity(config), "inputs": inputs.hashes}
    for query, role in product(config.eval.queries, config.eval.roles):
        before, here = (asked(record, q, role) for record, q in ((folder.record, "default"), (now, query)))
        if any(before[key] != here.get(key) for key in before if here):
            return {}
    default = {}
    for name, records in answers.samples.items():
        label, task, _ = name.split("/")
        file = folder.file("samples") / label / task / "default.jsonl"
        found = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
        if [record["id"] for record in found] == [record["id"] for record in records]:
            default[f"{label}/{task}/default"] = found
    whole = replace(answers, samples={**default, **answers.samples})
    return against_default(whole, inputs.questions.suite, label)


def _say_what_is_new(config: Config, before: dict[str, float], home: Path) -> None:
    """Reports and claims read a run's own results. What was not asked before could be among them."""
    known = {name.split("/")[-2] for name in before if name.startswith("unlearned/")}
    new = [query for query in config.eval.queries if query not in known]
    if new:
        ask = f"eval.queries=[{','.join(new)}]"
        say(f"A part was asked before, so the results go to {home}, where reports do not look. For them: {ask} alone.")


def _name(config: Config, inputs: Inputs) -> str:
    """The name of an evaluation: its configuration's name and the hash of what determines it."""
    return f"{config.eval.name}-{json_sha256([identity(config)['eval'], inputs.hashes])[:10]}"


def evaluate_checkpoint(overrides: list[str]) -> Path:
    """Evaluate a configuration's model as the base model, into OUTPUT_ROOT/evaluations; returns the folder."""
    config = settle(composed(overrides))
    inputs = load_evaluation_inputs(config)
    with open_evaluator(config, inputs) as evaluator:
        result = evaluator.evaluate_base()
    folder = Path(config.output_root) / "evaluations" / f"{config.model.name}-{_name(config, inputs)}"
    result.write_samples(folder / "samples")
    write_json(folder / "metrics.json", result.metrics)
    show_result(result.metrics, config.eval.roles, config.eval.queries, folder, None)
    return folder
