"""From Hydra's composed configuration to a typed, resolved and checked one (`schema.py`, `checks.py`).

It imports nothing heavy, so that a mistake is reported within a second.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from unlearn.config.checks import CHECKS, CHECKS_OF_TRAINING
from unlearn.config.compose import CONF
from unlearn.config.schema import Config
from unlearn.errors import UserError, nearest
from unlearn.methods.make import is_built_in


def _asset(path: str) -> str:
    """Absolute path of a file that is shipped inside the package."""
    return str(Path(__file__).parents[1] / path)


def _package(name: str) -> str:
    """Folder of an installed package, which is not imported."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        target = "make smollm2" if "smollm2" in name else "make gemma" if "gemma" in name else f"pip install {name}"
        raise UserError(f"the package {name} is not installed: `{target}`")
    return spec.submodule_search_locations[0]


def _corpora_by_role(topics: DictConfig, use: list[str] | None) -> DictConfig:
    """The corpora of the used topics, in the form of eval.texts.corpora. A corpus of several topics appears once."""
    corpora: dict[str, dict[str, str]] = {"retain": {}, "forget": {}}
    for name, topic in topics.items():
        for role, by_name in corpora.items():
            path = topic.get(role)
            if path is not None and path not in by_name.values() and (use is None or name in use):
                by_name[str(name)] = path
    return OmegaConf.create(corpora)


# Hydra finds launchers only in the namespace `hydra_plugins`. This folder holds a part of it.
sys.path.append(_asset("sweeps/plugins"))
OmegaConf.register_new_resolver("asset", _asset, replace=True)
OmegaConf.register_new_resolver("package", _package, replace=True)
OmegaConf.register_new_resolver("corpora_by_role", _corpora_by_role, replace=True)


def settle(raw: DictConfig, *, trained: bool = False) -> Config:
    """Hydra's composed configuration as a typed, resolved, checked `Config`.

    With `trained`, the method is not checked: reading a finished run must not import code that its folder names.

    Raises UserError, which names the key, what was given and what is allowed.
    """
    resolved = _resolve(raw)
    schema = OmegaConf.structured(Config)
    try:
        config = OmegaConf.to_object(OmegaConf.merge(schema, resolved))
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key}: no value was given.") from None
    except OmegaConfBaseException as error:
        raise UserError(_explain(error)) from None
    assert isinstance(config, Config)
    if not trained:
        _name_own_method(config)
    checks = CHECKS if trained else CHECKS_OF_TRAINING + CHECKS
    problems = [problem for check in checks for problem in check(config)]
    if problems:
        raise UserError("\n".join(problems))
    return config


def _name_own_method(config: Config) -> None:
    """A user's own class takes the settings of the method that it is based on, but not its name.

    With `method=rmu method._target_=my_method.Opposite` the run is called opposite.
    """
    target, name = config.method.get("_target_"), config.method.get("name")
    if isinstance(target, str) and not is_built_in(target) and (CONF / "method" / f"{name}.yaml").is_file():
        config.method["name"] = target.rpartition(".")[2].lower()


# A part of OmegaConf's message about a value of the wrong type -> what is allowed.
_ALLOWED = {
    "converted to Float": "a number, as 0.05 or 3e-3",
    "converted to Integer": "a whole number",
    "not a valid bool": "true or false",
    "not a ListConfig": "a list, as [a,b]",
}


def _explain(error: OmegaConfBaseException) -> str:
    """A type error or an unknown key of the typed schema, in one line."""
    key = error.full_key or str(error.key)
    first_line = str(error.msg or error).splitlines()[0]
    if error.object_type is not None and is_dataclass(error.object_type):
        names = [f.name for f in fields(error.object_type)]
        if str(error.key) not in names:
            return f"{key}: unknown key.{nearest(str(error.key), names)} Allowed: {', '.join(names)}."
    allowed = next((f" Allowed: {what}." for end, what in _ALLOWED.items() if end in first_line), "")
    return f"{key}: {first_line}.{allowed}"


def _resolve(raw: DictConfig) -> DictConfig:
    """Resolve every interpolation, with a clear error where a model lacks a coefficient."""
    resolved = OmegaConf.create(OmegaConf.to_container(raw, resolve=False))
    assert isinstance(resolved, DictConfig)
    resolved.pop("search", None)  # of hydra/sweeper=search, which has read it
    if "rna" in resolved:
        resolved.rna.pop("auto", None)  # of rna.nu=auto, which has read it
    for key, node in _leaves(resolved):
        try:
            OmegaConf.select(resolved, key, throw_on_missing=True)
        except MissingMandatoryValue:
            raise UserError(f"{key}: no value was given. Set it with {key}=VALUE.") from None
        except OmegaConfBaseException as error:
            # OmegaConf keeps only the message of an error in a resolver.
            if message := re.search(r"UserError raised while resolving interpolation: (.*)", str(error)):
                raise UserError(f"{key}: {message[1]}.") from None
            raise UserError(_missing_reference(resolved, key, str(node))) from None
    OmegaConf.resolve(resolved)
    if asks_for_nu(resolved):
        raise UserError(
            "rna.nu=auto trains its trials where the command is started, before the run. So it is not allowed in "
            "jobs for SLURM (hydra/launcher=packed runs here), in a search (which tries nu itself: "
            "'rna.nu=interval(0,4)') and in other commands: give a number there."
        )
    return resolved


def asks_for_nu(raw: DictConfig) -> bool:
    """Whether nu is to be found before the run (`rna.nu=auto`)."""
    try:
        return bool(OmegaConf.select(raw, "rna.nu") == "auto")
    except OmegaConfBaseException:  # a reference to what is not there, which `settle` explains
        return False


def _missing_reference(config: DictConfig, key: str, reference: str) -> str:
    model, method = config.model.get("name"), config.method.get("name")
    if "model.methods" in reference:
        methods = ", ".join(config.model.methods) or "none"
        return (
            f"{key}: model {model!r} has no default value for method {method!r}; it has defaults for: {methods}. Set "
            f"{key}=NUMBER, or add it below `methods` in conf/model/{model}.yaml."
        )
    return f"{key} refers to {reference}, which does not exist. Set {key}=VALUE."


def _leaves(node: DictConfig, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(full key, unresolved value) of every leaf."""
    for name in map(str, node):
        key = f"{prefix}{name}"
        value = node._get_node(name)
        if isinstance(value, DictConfig) and not value._is_interpolation() and not value._is_none():
            yield from _leaves(value, f"{key}.")
        else:
            yield key, value._value() if value is not None else None
