"""Using the training of a finished run for a run that differs only in the evaluation."""

from __future__ import annotations

import shutil
from glob import escape
from pathlib import Path
from typing import Any

from unlearn.config.identity import RUNS, identity, name_of, prefix, training_identity
from unlearn.config.schema import Config
from unlearn.runs.folder import OF_TRAINING, RunFolder, same_inputs


def find_training(config: Config, inputs: dict[str, Any]) -> RunFolder | None:
    """A run below `output_root` that has finished the same training as this configuration needs.

    It has another evaluation, which may be unfinished or failed. Model and corpora must have the same hashes.
    """
    whole = identity(config)
    for file in sorted((Path(config.output_root) / RUNS).glob(f"{escape(prefix(whole))}*/run.json")):
        try:
            run = RunFolder(file.parent)
        except (OSError, ValueError):  # not readable, or being written by an older version
            continue
        if _same_training(run, whole, inputs):
            return run
    return None


def _same_training(run: RunFolder, whole: dict[str, Any], inputs: dict[str, Any]) -> bool:
    other = run.record.get("identity", {})
    if run.trained is None or other == whole or training_identity(other) != training_identity(whole):
        return False
    return "inputs" in run.record and same_inputs(run.record, inputs, OF_TRAINING)


def take_over(folder: RunFolder, other: RunFolder) -> bool:
    """Copy the delta, the training log and the final values of `other`. False if `other` has changed meanwhile."""
    before = dict(other.record)
    try:
        for name in ("train.jsonl", "delta.safetensors"):
            with folder.lock.replacing(folder.file(name)) as scratch:
                shutil.copyfile(other.file(name), scratch)
        other.read()
    except FileNotFoundError:
        return False
    if other.record.get("trained") != before["trained"] or other.record["identity"] != before["identity"]:
        return False
    folder.record["training_from"] = before.get("training_from", name_of(before["identity"]))
    folder.finish_training(before["trained"])
    return True
