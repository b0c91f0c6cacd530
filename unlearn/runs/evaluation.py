"""Evaluating a finished run once more, or a checkpoint, without training."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

from omegaconf import OmegaConf

from unlearn.config.compose import composed
from unlearn.config.identity import identity
from unlearn.config.schema import Config
from unlearn.config.settle import settle
from unlearn.errors import UserError
from unlearn.evaluate.evaluator import Unlearned
from unlearn.runs.folder import RunFolder
from unlearn.runs.inputs import Inputs, load_evaluation_inputs
from unlearn.runs.sharing import open_evaluator
from unlearn.storage.files import write_json
from unlearn.storage.hashing import json_sha256
from unlearn.storage.lock import FolderLock
from unlearn.tracking.terminal import show_result


def evaluate(what: str, overrides: list[str]) -> Path:
    """Evaluate a run's folder, a checkpoint, or the model of a configuration (model=NAME); returns the results' folder.

    Raises UserError if that cannot be done.
    """
    folder = RunFolder(Path(what))
    if folder.record:
        return evaluate_run(folder, overrides)
    return evaluate_checkpoint([what if "=" in what else f"model.path={what}", *overrides])


def run_config(folder: RunFolder, overrides: list[str], *, own: bool = False) -> Config:
    """The configuration of a run with another evaluation; with `own` and no overrides, with its own.

    Raises UserError for overrides of anything else.
    """
    for override in overrides:
        if not override.lstrip("+~").startswith("eval"):
            raise UserError(f"{override}: of a finished run only eval and its keys can be chosen anew.")
    raw, new = OmegaConf.create(folder.record["config"]), composed(overrides)
    raw.tracker = new.tracker  # not used here; that of an older run may lack a key
    if overrides or not own:
        raw.eval = new.eval
    return settle(raw)


def evaluate_run(folder: RunFolder, overrides: list[str]) -> Path:
    """Evaluate a run once more; returns the folder of the results.

    It is the run's own folder, or, if some of these tasks and queries were asked before, a folder inside it. Earlier
    results stay.
    """
    with FolderLock(folder.path):
        return _evaluate_run(folder, overrides)


def _evaluate_run(folder: RunFolder, overrides: list[str]) -> Path:
    config = run_config(folder, overrides)
    partial = folder.file("partial")
    inputs = load_evaluation_inputs(config)
    with open_evaluator(config, inputs) as evaluator:
        [result] = evaluator.evaluate([Unlearned(folder.file("delta.safetensors"), partial)])
    before = json.loads(folder.file("metrics.json").read_text()) if folder.file("metrics.json").is_file() else {}
    home = folder.path
    if before.keys() & result.metrics.keys():
        home, before = folder.file("evaluations") / _name(config, inputs), {}
    result.write_samples(home / "samples")
    write_json(home / "metrics.json", before | result.metrics)
    folder.record.setdefault("evaluations", []).append(
        {
            **asdict(config.eval),
            "query_words": inputs.questions.word_hashes,
            "text_hashes": inputs.questions.text_hashes,
            "questions": inputs.questions.suite.hashes,
        }
    )
    folder.write()
    shutil.rmtree(partial, ignore_errors=True)
    show_result(result.metrics, config.eval.roles, config.eval.queries, home, None)
    return home


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
