"""What a job cannot run without, told before it is submitted: a mistake that all jobs of a sweep share is told once.

Nothing heavy is imported here, as this is what a login node does. What only loading tells, such as an error in the
middle of a corpus, or a data set that cannot be had, is told by the jobs themselves.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from unlearn.config.identity import run_folder
from unlearn.config.schema import Config
from unlearn.data.formats import HUB, read_rows
from unlearn.errors import UserError
from unlearn.evaluation.task_names import check_task_names
from unlearn.storage.files import check_writable, no_such_file

TABLES = (".csv", ".parquet")  # read by the library datasets, whose import takes seconds


def obstacle(config: Config) -> str | None:
    """A sentence about the first thing that a configuration names and that does not exist or cannot be read or written.

    Of each corpus the first document is read.
    """
    try:
        check_writable(run_folder(config).parent)
        _check_model(config)
        for key, path in _input_files(config).items():
            if not path.startswith(HUB) and not Path(path).exists():
                return f"{key}={path}: {no_such_file(path)}"
        for column, corpora in _corpora(config).items():
            for key, path in corpora.items():
                _read_first(path, key, column)
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


@lru_cache  # jobs share corpora
def _read_first(path: str, key: str, column: str) -> None:
    if not path.startswith(HUB) and Path(path).suffix not in TABLES:
        next(iter(read_rows(path, key, column)), None)


def _input_files(config: Config) -> dict[str, str]:
    """The files and folders, or data sets of the hub, that a configuration names beside the model, by their keys."""
    evaluation, tokens = config.eval, config.eval.forget_tokens
    files: dict[str, str | None] = {}
    for corpora in _corpora(config).values():
        files |= corpora
    if evaluation.roles:
        files |= {"eval.include_path": evaluation.include_path, "eval.local_dir": evaluation.local_dir}
    if {"perturbed", "control"} & set(evaluation.queries) and isinstance(tokens, str):
        files["eval.forget_tokens"] = None if tokens.startswith("corpus:") else tokens
    if "control" in evaluation.queries and isinstance(evaluation.control_tokens, str):
        files["eval.control_tokens"] = evaluation.control_tokens
    return {key: path for key, path in files.items() if path is not None}


def _corpora(config: Config) -> dict[str, dict[str, str]]:
    """The column that has the documents -> key -> corpus."""
    data, texts, preferred = config.data, config.eval.texts, config.method.get("preferred")
    trained = {} if preferred is None else {"method.preferred": str(preferred)}
    for name in data.use or data.topics:
        trained |= {f"data.topics.{name}.{part}": getattr(data.topics[name], part) for part in ("forget", "retain")}
    held_out = {
        f"eval.texts.corpora.{role}.{name}": path
        for role, corpora in texts.corpora.items()
        for name, path in corpora.items()
    }
    if data.text_column == texts.text_column:
        return {data.text_column: trained | held_out}
    return {data.text_column: trained, texts.text_column: held_out}
