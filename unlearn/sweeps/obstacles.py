"""What a job cannot run without, told before it is submitted: a mistake that all jobs of a sweep share is told once.

Nothing heavy is imported here, as this is what a login node does; only tables (CSV, Parquet) need the library datasets.
A data set on the hub, and what only the model can tell, is told by the jobs themselves.
"""

from __future__ import annotations

from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from unlearn.config.identity import run_folder
from unlearn.config.schema import Config, TextConfig
from unlearn.data.corpora import Reading, documents
from unlearn.data.formats import HUB
from unlearn.errors import UserError
from unlearn.evaluation.task_names import check_task_names
from unlearn.evaluation.texts import load_passages
from unlearn.storage.files import check_writable, no_such_file


def obstacle(config: Config) -> str | None:
    """A sentence about the first thing that a configuration names and that does not exist or cannot be read or written.

    Of a local corpus every document is read and checked that the jobs will read.
    """
    try:
        check_writable(run_folder(config).parent)
        _check_model(config)
        for key, path in _input_files(config).items():
            if not Path(path).exists():
                return f"{key}={path}: {no_such_file(path)}"
        _check_corpora(config)
        names = [name for named in config.eval.tasks.values() for name in named]
        check_task_names(names, config.eval.include_path)
    except UserError as error:
        return str(error)
    return None


def _check_model(config: Config) -> None:
    model = config.model
    if Path(model.path).is_absolute() and not Path(model.path).is_dir():
        raise UserError(f"model.path={model.path}: there is no such folder.")
    if model.gguf_file is not None and Path(model.path).is_dir() and not (Path(model.path) / model.gguf_file).is_file():
        raise UserError(f"model.gguf_file={model.gguf_file}: there is no such file in {model.path}.")


def _check_corpora(config: Config) -> None:
    reading = Reading.of(config.data)
    for key, path in _trained(config).items():
        if not path.startswith(HUB):
            _check_documents(path, key, reading)
    texts = config.eval.texts
    settings = {field.name: getattr(texts, field.name) for field in fields(texts)} | {"corpora": None}
    for role, corpora in texts.corpora.items():
        for name, path in corpora.items():
            if not path.startswith(HUB):
                _check_texts(role, name, path, config.eval.limit, tuple(settings.items()))


@lru_cache  # jobs share corpora
def _check_documents(path: str, key: str, reading: Reading) -> None:
    for _ in documents(path, key, reading):
        pass


@lru_cache
def _check_texts(role: str, name: str, path: str, limit: int | None, settings: tuple[tuple[str, Any], ...]) -> None:
    load_passages(TextConfig(**dict(settings)), {"default": ()}, corpora={role: {name: path}}, limit=limit)


def _input_files(config: Config) -> dict[str, str]:
    """The files and folders that a configuration names beside the model and the corpora, by their keys."""
    evaluation, tokens = config.eval, config.eval.forget_tokens
    files: dict[str, str | None] = {}
    if evaluation.roles:
        files |= {"eval.include_path": evaluation.include_path, "eval.local_dir": evaluation.local_dir}
    if {"perturbed", "control"} & set(evaluation.queries) and isinstance(tokens, str):
        files["eval.forget_tokens"] = None if tokens.startswith("corpus:") else tokens
    if "control" in evaluation.queries and isinstance(evaluation.control_tokens, str):
        files["eval.control_tokens"] = evaluation.control_tokens
    return {key: path for key, path in files.items() if path is not None}


def _trained(config: Config) -> dict[str, str]:
    """The corpora that are trained on, by their keys."""
    data, preferred = config.data, config.method.get("preferred")
    corpora = {} if preferred is None else {"method.preferred": str(preferred)}
    for name in data.use or data.topics:
        corpora |= {f"data.topics.{name}.{part}": getattr(data.topics[name], part) for part in ("forget", "retain")}
    return corpora
