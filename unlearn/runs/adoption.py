"""A finished run's folder from two checkpoints of one architecture: an unlearned one and its base. Nothing is trained.

What the two differ in is written as a run's delta. What else is known of the unlearning is what the user gives; the
run's identity, by which reports show and sort runs, holds nothing that nobody gave.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from unlearn.config.compose import composed, is_override, of_model, override
from unlearn.config.identity import RUNS, identity, name_of
from unlearn.config.schema import Config
from unlearn.config.settle import settle
from unlearn.errors import UserError
from unlearn.evaluation.evaluator import Unlearned
from unlearn.models.architectures import layer_count
from unlearn.models.delta import write_delta
from unlearn.models.difference import (
    Differences,
    check_same_architecture,
    compare_checkpoints,
    is_adapter,
    kinds,
    stored_dtype,
)
from unlearn.models.fingerprint import checkpoint_fingerprint
from unlearn.models.loading import Source, check_weights, load_config, load_tokenizer
from unlearn.records.answers import Answers
from unlearn.records.run import RECORD
from unlearn.records.scores import check_finite
from unlearn.runs.active import failing
from unlearn.runs.folder import RunFolder
from unlearn.runs.inputs import Inputs, load_evaluation_inputs, make_evaluator
from unlearn.screen import say
from unlearn.storage.files import check_space, check_writable
from unlearn.tracking.terminal import show_result

UNKNOWN = "unknown"  # the method of a checkpoint of which none is given
SETTINGS = ("method", "rna", "train", "loss", "seed")  # of an unlearning: unknown unless they are given
GIVEN = (*SETTINGS, "model", "data", "eval", "output_root", "output_dir")  # what overrides may set
LOWEST = 2  # no run is trained at a lower layer
SHOWN = 10  # digits of a fingerprint in an identity


def adopt(checkpoint: str, base: str, overrides: Sequence[str] = ()) -> Path:
    """Make a finished run's folder of an unlearned checkpoint and its base, and return it. Nothing is trained.

    Evaluations, attacks, comparisons, reports and exports then work as on any run.

    Args:
        checkpoint: a folder, a hub id, a GGUF file, or an adapter of PEFT (folder or hub id).
        base: the model that was unlearned: a folder, a hub id, a GGUF file, or model=NAME of conf/model.
        overrides: what is known of the unlearning, as for a run (method=rmu method.c=6.5 train.steps=150 seed=0), the
            texts (data=NAME), and an evaluation to make at once (eval=NAME; the default is none).

    Raises UserError for checkpoints of different shapes or vocabularies, and if they do not differ.
    """
    given = [text.lstrip("+~").partition("=")[0] for text in overrides]
    config, own = _settled(checkpoint, base, list(overrides), given)
    inputs = _inputs(config)
    fingerprints = {"checkpoint": checkpoint_fingerprint(own), "base": inputs.model_hash}
    short = {name: sha256[:SHOWN] for name, sha256 in fingerprints.items()}
    known = {**_known(identity(config), [*given, *(["rna.nu"] if "rna=none" in overrides else [])]), "adopted": short}
    path = Path(config.output_dir or Path(config.output_root) / RUNS / name_of(known))
    folder = RunFolder(path)
    folder.claim(known)
    folder.check_files()
    if folder.done:
        say(f"{path} holds this pair, adopted with this evaluation: nothing to do.")
        return path
    check_writable(path)
    found = compare_checkpoints(own, inputs.source, inputs.source.torch_dtype)
    _show(found, checkpoint, base)
    if "model.layer" not in given:
        config = replace(config, model=replace(config.model, layer=max(found.highest_layer, LOWEST)))
    places = {"checkpoint_path": checkpoint, "base_path": base}
    about = {**fingerprints, **places, "given": list(overrides), "changes": found.changes}
    answers = _make(folder, config, known, inputs, found, about)
    show_result(answers.scores, path, None)
    check_finite(answers.scores)
    return path


def _settled(checkpoint: str, base: str, overrides: list[str], given: Collection[str]) -> tuple[Config, Source]:
    """The configuration, checked, and where the unlearned checkpoint is.

    Raises UserError if the two are not of one architecture, or if weight files are missing.
    """
    raw = _composed(base, overrides, given)
    of_base = Source.of(raw.model)
    own = _source(checkpoint, of_base)
    check_same_architecture(own, of_base)
    raw.model.num_layers = layer_count(load_config(of_base))
    if "model.dtype" not in given:
        dtype = stored_dtype(of_base if is_adapter(own) else own)
        raw.model.dtype = str(dtype).removeprefix("torch.")
    if "model.layer" not in given:
        raw.model.layer = raw.model.num_layers - 1  # until it is known where the two differ
    config = settle(raw, trained=True)
    for source in (of_base, *([] if is_adapter(own) else [own])):
        check_weights(source, None)
    return config, own


def _composed(base: str, overrides: list[str], given: Collection[str]) -> DictConfig:
    """The configuration, not yet settled. Of the method it has only what is given.

    What a training needs beside that has some value, which no command reads.
    """
    for key, text in zip(given, overrides, strict=True):
        if key.partition(".")[0] not in GIVEN:
            raise UserError(f"{text} is not allowed: for an adopted checkpoint only {', '.join(GIVEN)} can be given.")
    defaults = {"data": "data=jsonl", "eval": "eval=none"}
    chosen = [text for group, text in defaults.items() if group not in given]
    raw = composed([*_of_base(base), *chosen, "tracker=none", *overrides])
    arguments = [key for key in given if key.startswith("method.") and key != "method.name"]
    if "method" in given or "method.name" in given:
        names = ("name", "_target_") if "method" in given else ("name",)
        kept = {name: raw.method[name] for name in (*names, *(key.partition(".")[2] for key in arguments))}
    elif arguments:
        raise UserError(f"{arguments[0]} is an argument of a method: give the method, too (method=NAME).")
    else:
        kept = {"name": UNKNOWN}
    raw.method = kept
    raw.model.methods, raw.model.grids = {}, {}
    if "rna.nu" not in given:
        raw.rna.nu = 0.0
    return raw


def _of_base(base: str) -> list[str]:
    """The overrides that choose the base model."""
    if Path(base).is_file():
        file = Path(base)
        chosen = {"model.path": str(file.parent), "model.gguf_file": file.name, "model.name": file.stem}
        return [override(key, value) for key, value in chosen.items()]
    return of_model(base)


def _source(checkpoint: str, base: Source) -> Source:
    """Where the unlearned checkpoint is."""
    if (Path(checkpoint) / RECORD).exists():
        raise UserError(
            f"{checkpoint} is the folder of a run: `unlearn evaluate`, `attack` and so on take it as it is."
        )
    if is_override(checkpoint):
        raise UserError(f"{checkpoint} is not allowed: CHECKPOINT must be a folder, a hub id or a GGUF file.")
    file = Path(checkpoint)
    if file.is_file():
        return replace(base, path=str(file.parent), revision=None, gguf_file=file.name)
    of_model(checkpoint)  # raises what is wrong with it
    return replace(base, path=checkpoint, revision=None, gguf_file=None)


def _inputs(config: Config) -> Inputs:
    if config.eval.roles:
        return load_evaluation_inputs(config)
    source = Source.of(config.model)
    return Inputs(source, checkpoint_fingerprint(source), load_tokenizer(source), None)


def _known(whole: dict[str, Any], given: Collection[str]) -> dict[str, Any]:
    """An identity without the settings that nobody gave."""

    def kept(group: str, values: Any) -> Any:
        if group == "method" or not isinstance(values, dict):
            return values
        return {key: value for key, value in values.items() if _is_given(f"{group}.{key}", given)}

    known = {group: kept(group, values) if group in SETTINGS else values for group, values in whole.items()}
    if "seed" not in given:
        known.pop("seed")
    if not _is_given("data", given):
        known.pop("data")
    known["model"] = {
        key: value
        for key, value in whole["model"].items()
        if key not in ("layer", "parameters") or f"model.{key}" in given
    }
    return known


def _is_given(key: str, given: Collection[str]) -> bool:
    """Whether a key, or one below it, is among those that were given."""
    return any(other == key or other.startswith(f"{key}.") for other in given)


def _show(found: Differences, checkpoint: str, base: str) -> None:
    """Say which parameters differ, and by how much."""
    share = f"{len(found.changes)} of {found.compared} parameters"
    say(f"{checkpoint} differs from {base} in {share} (norm of the difference, relative to that of the base):")
    for kind, names in kinds(found.changes).items():
        low, high = (f"{bound(found.changes[name] for name in names):.2g}" for bound in (min, max))
        layers = ", ".join(str(found.layers[name]) for name in names if name in found.layers)
        where = f" in layers {layers}" if layers else ""
        say(f"  {kind}{where}: {low if low == high else f'{low} to {high}'}")
    if found.rounded:
        dtype = str(found.dtype).removeprefix("torch.")
        say(f"The values of {len(found.rounded)} parameters were rounded to {dtype} (model.dtype).")


def _make(
    folder: RunFolder,
    config: Config,
    known: dict[str, Any],
    inputs: Inputs,
    found: Differences,
    about: dict[str, Any],
) -> Answers:
    """Write the folder: the delta, the answers if there are questions, and the record."""
    with folder.locked() as lock, failing(folder):
        check_space(folder.path, sum(weight.nbytes for weight in found.weights.values()))
        folder.start(asdict(config), known, inputs.hashes)
        folder.record["adopted"] = about
        with lock.replacing(folder.file("delta.safetensors")) as scratch:
            metadata = {"model": config.model.name, "run": name_of(known)}
            write_delta(scratch, found.weights, found.replaces, metadata)
        folder.finish_training({})
        answers = Answers([], [])
        if inputs.questions is not None:
            model = Unlearned(folder.file("delta.safetensors"), folder.file("partial"), lock)
            [answers] = make_evaluator(config, inputs).evaluate([model])
        folder.finish(answers, inputs.questions.ngrams if inputs.questions else {})
    return answers
