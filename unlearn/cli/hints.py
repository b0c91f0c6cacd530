"""Hydra's errors as one sentence: unknown keys and options with the nearest valid name, and unreadable values."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from hydra.errors import OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from unlearn.config.compose import CONF
from unlearn.config.schema import Config
from unlearn.errors import UserError, nearest
from unlearn.methods.make import BUILT_IN, is_built_in

MERGING = "Error merging override "  # Hydra's words for an override whose value is of a wrong type


def explain(error: BaseException) -> str:
    """The message of a UserError; for an error of Hydra or OmegaConf a hint, or else the first line of its message."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override}: cannot be read as KEY=VALUE. "
            "Put quotes around a value with commas, spaces, brackets or quotes."
        )
    cause, message = error.__cause__, str(error)
    if isinstance(cause, OmegaConfBaseException) and message.startswith(MERGING):
        return f"{message.removeprefix(MERGING)}: {_first_line(str(cause))}"
    if match := re.search(r"Could not override '(?:\w+@)?([\w./@-]+)'", message):
        composed = cause.parent_node if isinstance(cause, OmegaConfBaseException) else None
        return _unknown_key(match[1], {} if composed is None else composed._get_root())
    return _hint(message) or _first_line(message) or type(error).__name__


def _first_line(message: str) -> str:
    """The first line that is not blank; with the next one if it ends with a colon."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])


def _hint(message: str) -> str:
    """A sentence for some of Hydra's messages, else an empty string."""
    if match := re.search(r"Ambiguous value for argument '(.*)'", message):
        return f"{match[1]}: several values were given. Add -m to run a job for each, or write a list as KEY=[A,B]."
    if match := re.search(r"Sweep parameters '(.*)' requires --multirun", message):
        return f"{match[1]}: several values need -m: a job for each, or a search with -m hydra/sweeper=search."
    if match := re.search(r"An item is already at '([^']+)'", message):
        return f"{match[1]}: the key exists already. Leave out the +: {match[1]}=VALUE."
    if match := re.search(r"Could not find '([\w/]+)/([^/']+)'", message):
        group, name = match.groups()
        options = sorted(file.stem for file in (CONF / group).glob("*.yaml"))
        default = " Where no eval is given, it has the name of data." if group == "eval" else ""
        return f"{group}={name}: no such option.{nearest(name, options)} Allowed: {', '.join(options)}.{default}"
    return ""


def _unknown_key(key: str, composed: DictConfig | dict[str, Any]) -> str:
    """A sentence about a key that the composed configuration lacks."""
    if new := _new_entry(key, composed):
        return new
    group, _, rest = key.partition(".")
    if group == "search" and group not in composed:
        return f"{key} needs -m hydra/sweeper=search."
    if group == "method" and not is_built_in(_target(composed)):
        return f"{key}: there is no such key yet. +{key}=VALUE adds an argument of a class of your own."
    owners = [file.stem for file in sorted((CONF / group).glob("*.yaml")) if rest in yaml.safe_load(file.read_text())]
    if owners:
        return f"{key} exists only with {', '.join(f'{group}={owner}' for owner in owners)}."
    groups = [folder.name for folder in CONF.iterdir() if folder.is_dir()]
    keys = [other for other in [*_keys(composed), *groups] if other.startswith("hydra.") == key.startswith("hydra.")]
    same_name = [other for other in keys if other.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    beside = [other for other in keys if group and other.rpartition(".")[0] == key.rpartition(".")[0]]
    names = [other.rpartition(".")[2] for other in beside]
    if not same_name and beside and not nearest(key.rpartition(".")[2], names):
        return f"{key}: unknown key. Allowed: {', '.join(names)}."
    return f"{key}: unknown key.{nearest(key, same_name) or nearest(key, keys)}"


def _target(composed: DictConfig | dict[str, Any]) -> str:
    method = composed.get("method") or {}
    return str(method.get("_target_", BUILT_IN))


def _new_entry(key: str, composed: Any) -> str:
    """How to add an entry to a dictionary with free names, such as eval.texts.corpora.ROLE.NAME; empty for other keys.

    The arguments of a method are not free: its class names them.
    """
    schema: Any = Config
    names = key.split(".")
    for depth, name in enumerate(names):
        is_free = get_origin(schema) is dict
        if is_free and name not in composed and names[0] != "method":
            entry, value = ".".join(names[: depth + 1]), get_args(schema)[1]
            if not is_dataclass(value):
                return f"{key}: there is no such entry. Add it with +{key}=...{nearest(name, composed)}"
            needed = [f"{field.name}: ..." for field in fields(value) if field.default in (MISSING, "???")]
            example = f"'+{entry}={{{', '.join(needed)}}}'"
            return f"{entry}: there is no such entry. Add it with {example}.{nearest(name, composed)}"
        composed = composed.get(name) if isinstance(composed, (dict, DictConfig)) else None
        composed = {} if composed is None else composed
        hints = get_type_hints(schema) if is_dataclass(schema) else {}
        schema = get_args(schema)[1] if is_free else hints.get(name)
    return ""


def _keys(composed: DictConfig | dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Every key of a composed configuration."""
    for name in map(str, composed):
        yield f"{prefix}{name}"
        value = composed._get_node(name) if isinstance(composed, DictConfig) else composed[name]
        if isinstance(value, DictConfig) and not value._is_interpolation() and not value._is_none():
            yield from _keys(value, f"{prefix}{name}.")
