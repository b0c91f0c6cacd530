"""A configuration that a folder holds is data: nothing in it is resolved, and code that it names needs a permission."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from unlearn.config.schema import Config
from unlearn.errors import UserError
from unlearn.methods.make import is_built_in, own_file
from unlearn.storage.schema import Tree, checked

PACKAGE = Path(__file__).parents[1]
ASSETS = ("toy/", "real/data/", "data/preferred.txt")  # of the package, that configurations name
ALLOW = "--allow-code"


class _Groups(TypedDict):
    """The groups of a configuration; the schema of `Config` says what is in them."""

    preset: Tree
    model: Tree
    method: Tree
    rna: Tree
    data: Tree
    train: Tree
    loss: Tree
    eval: Tree
    tracker: Tree


_GROUPS = TypeAdapter(_Groups)


def recorded(values: dict[str, Any], file: Path, *key: str) -> DictConfig:
    """The configuration in a file, or in the part `key` of it, not yet checked.

    Paths into another copy of the package lead into this one.

    Raises UserError for an interpolation: it could read an environment variable or import a package.
    """
    checked(_GROUPS, values, file, *key)
    for place, value in _strings(values, ".".join(key)):
        if "${" in value or "${" in place:
            raise UserError(f"{file}: {place}={value} is not allowed: a record holds values, no references (${{...}}).")
    config = OmegaConf.create(_with_assets(values))
    assert isinstance(config, DictConfig)
    return config


def foreign_tasks(config: Config) -> str | None:
    """The folder of tasks that a configuration names, unless it is the package's: functions and templates run."""
    folder = config.eval.include_path
    if folder is None or Path(folder).resolve().is_relative_to(PACKAGE.resolve()):
        return None
    return f"tasks of eval.include_path={folder} (functions and templates)"


def code_of(config: Config) -> list[str]:
    """What would run as code, beside this package, where a configuration is trained and evaluated."""
    tasks, target = foreign_tasks(config), str(config.method.get("_target_"))
    code = [] if tasks is None else [tasks]
    if config.model.trust_remote_code:
        code.append(f"Python files of the checkpoint model.path={config.model.path} (model.trust_remote_code)")
    if not is_built_in(target):
        code.append(f"{own_file(target)} (method._target_={target})")
    return code


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, value) of every string in a tree; a key with an empty value for what holds others."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            inside = f"{key}.{name}" if key else str(name)
            yield inside, ""
            yield from _strings(part, inside)
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part, key)
    elif isinstance(value, str):
        yield key, value


def _with_assets(value: Any) -> Any:
    """A tree whose paths into another copy of the package lead into this one, as far as they are there."""
    if isinstance(value, dict):
        return {key: _with_assets(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_with_assets(part) for part in value]
    inside = value.rpartition("/unlearn/")[2] if isinstance(value, str) else ""
    is_asset = inside != value and inside.startswith(ASSETS) and ".." not in inside and (PACKAGE / inside).exists()
    return str(PACKAGE / inside) if is_asset else value
