"""A run's identity: the part of its configuration that determines its result, and the folder named after it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from unlearn.config.schema import Config, as_float
from unlearn.methods.rna import RETAIN_TARGET
from unlearn.records.names import ALL, NGRAM_QUERIES
from unlearn.storage.hashing import json_sha256

# Increase this by hand when the same configuration gives other numbers than before.
RESULTS_VERSION = 3
RUNS = "runs"  # below output_root
TRIALS = "auto_nu"  # below output_root: the trials of rna.nu=auto
NO_NGRAMS = {"documents": None, "window": 512, "top": 10, "encoder": None}  # of an evaluation that asks for none


def identity(config: Config) -> dict[str, Any]:
    """The part of the configuration that determines the result: no paths, no tracker, no launcher.

    Files that paths lead to are identified by their hashes, which the run records and verifies.
    """
    plain = asdict(config)
    model, data, evaluation = plain["model"], plain["data"], plain["eval"]
    for key in ("path", "gguf_file", "device", "max_memory", "num_layers", "trust_remote_code"):
        model.pop(key)
    for key in ("methods", "grids", "masks", "schedules", "alpha", "lr"):  # defaults of other keys
        model.pop(key)
    if plain["rna"]["where"] == RETAIN_TARGET:  # only placebos have the key
        plain["rna"].pop("where")
    plain["method"].pop("preferred", None)
    plain["method"] = {key: as_float(value) for key, value in plain["method"].items()}  # method.c=3 is 3.0
    if data["use"] is None and list(data["topics"]) != sorted(data["topics"]):  # hashing sorts keys; order matters
        data["use"] = list(data["topics"])
    for topic in data["topics"].values():
        for key in ("forget", "retain"):
            if not topic[key].startswith("hub:"):
                topic.pop(key)
    for key in ("forget_tokens", "control_tokens"):
        if isinstance(evaluation[key], str):
            evaluation.pop(key)
    if evaluation["texts"]["texts_per_word"] is None:  # as in runs from before this key
        evaluation["texts"].pop("texts_per_word")
    if evaluation["questions"] == ALL:  # as in runs from before this key
        evaluation.pop("questions")
    if not NGRAM_QUERIES.keys() & set(evaluation["queries"]):
        evaluation["ngrams"] = NO_NGRAMS
    for corpora in evaluation["texts"]["corpora"].values():
        corpora.update((name, path if path.startswith("hub:") else "") for name, path in corpora.items())
    for key in ("for_model", "include_path", "local_dir", "tokens_per_batch"):
        evaluation.pop(key)
    for key in ("log_every", "checkpoint_every", "recompute", "force"):
        plain["train"].pop(key)
    for key in ("preset", "tracker", "output_root", "output_dir", "attacks", "nu_found"):
        plain.pop(key)
    return {**plain, "results_version": RESULTS_VERSION}


def run_name(config: Config) -> str:
    """METHOD-MODEL-HASH, the hash being that of `identity`."""
    return name_of(identity(config))


def name_of(identity: dict[str, Any]) -> str:
    """`run_name` of an identity, such as run.json holds."""
    return f"{prefix(identity)}{json_sha256(identity)[:10]}"


def prefix(identity: dict[str, Any]) -> str:
    """METHOD-MODEL-, with which the name of every run of this method and model begins."""
    return f"{identity['method']['name']}-{identity['model']['name']}-"


def training_identity(identity: dict[str, Any]) -> dict[str, Any]:
    """The part of an identity that determines the training: all but the evaluation."""
    return {key: value for key, value in identity.items() if key != "eval"}


def run_folder(config: Config) -> Path:
    """Where this run's files go."""
    if config.output_dir is not None:
        return Path(config.output_dir)
    return Path(config.output_root) / RUNS / run_name(config)
