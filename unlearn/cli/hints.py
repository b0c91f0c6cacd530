"""Hydra's errors as one sentence: unknown keys and options with the nearest valid name, and what cannot be read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from hydra.errors import OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from unlearn.config.compose import CONF
from unlearn.config.schema import Config
from unlearn.errors import UserError, nearest

MERGING = "Error merging override "  # Hydra's words for an override whose value is of a wrong type


def explain(error: BaseException) -> str:
    """A user's mistake as it is; an error of Hydra or OmegaConf in a sentence: our hint, or else its first line."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override}: cannot be read as KEY=VALUE. "
            "Put quotes around a value with commas, spaces, brackets or quotes."
        )
    if isinstance(error.__cause__, OmegaConfBaseException) and str(error).startswith(MERGING):
        return f"{str(error).removeprefix(MERGING)}: {_first_line(str(error.__cause__))}"
    message = str(error)
    return hint(message) or _first_line(message) or type(error).__name__


def _first_line(message: str) -> str:
    """The first line that says something; with the next one if it ends with a colon."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])


def hint(message: str) -> str:
    """A sentence for Hydra's "no such key", "no such option" or "several values", else an empty string."""
    if match := re.search(r"Ambiguous value for argument '(.*)'", message):
        return f"{match[1]}: several values. With -m each of them is a job of its own; a list is KEY=[A,B]."
    if match := re.search(r"Could not override '(?:\w+@)?([\w./@-]+)'", message):
        return _key_hint(match[1])
    if match := re.search(r"Could not find '([\w/]+)/([^/']+)'", message):
        group, name = match.groups()
        return f"{group}={name}: no such option.{nearest(name, _options(group))}"
    return ""


def _options(group: str) -> list[str]:
    return sorted(f.stem for f in (CONF / group).glob("*.yaml"))


def _key_hint(key: str) -> str:
    """Which options of its group have the key; or else the nearest of all keys in conf/, first by their last name."""
    if key.startswith("hydra."):
        return ""  # not of conf/: Hydra has said what it knows
    known = sorted({key for key, _ in _all_keys()})
    if _takes_any_name(key):
        beside = [k for k in known if k.rpartition(".")[0] == key.rpartition(".")[0]]
        return f"{key}: not there yet; +{key}=... adds it.{'' if key in beside else nearest(key, beside)}"
    if key in known:
        owners = sorted({f"{file.parent.name}={file.stem}" for found, file in _all_keys() if found == key})
        return f"{key}: a key of {', '.join(owners)} only."
    last = key.rsplit(".", 1)[-1]
    same_name = [k for k in known if k.rsplit(".", 1)[-1] == last]
    return f"{key}: unknown key.{nearest(key, same_name) or nearest(key, known)}"


def _takes_any_name(key: str) -> bool:
    """Whether the schema has a dictionary around the key, as around eval.texts.corpora.ROLE.NAME.

    A method checks its own keys.
    """
    around: Any = Config
    for name in key.split(".")[:-1]:
        if get_origin(around) is dict:
            around = get_args(around)[1]
        else:
            around = get_type_hints(around).get(name) if is_dataclass(around) else None
    return get_origin(around) is dict and not key.startswith("method.")


def _all_keys() -> Iterator[tuple[str, Path]]:
    """Every key of conf/, and the file that it stands in."""
    for file in [CONF / "config.yaml", *CONF.glob("*/*.yaml")]:
        group = "" if file.parent in (CONF, CONF / "experiment") else f"{file.parent.name}."
        for key in _flatten(yaml.safe_load(file.read_text()) or {}):
            yield group + key, file
    yield from ((f.name, f) for f in CONF.iterdir() if f.is_dir())


def _flatten(tree: dict) -> Iterator[str]:
    for name, value in tree.items():
        if name in ("defaults", "hydra"):
            continue
        yield name
        if isinstance(value, dict):
            yield from (f"{name}.{rest}" for rest in _flatten(value))
