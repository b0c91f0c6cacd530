"""A method from the `method` group of a configuration: the class that `_target_` names, with its arguments.

The class is one of `unlearn.methods`, or one in a file of the current folder: `my_method.Opposite` is the class
`Opposite` of `my_method.py`. Nothing else is imported. Only a training asks for its method: what reads a finished run
(evaluate, attack, report) takes its weights and imports no code that the run's folder names.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields
from importlib.util import module_from_spec, spec_from_file_location
from inspect import isabstract
from pathlib import Path
from typing import Any

import unlearn.methods
from unlearn.errors import UserError, nearest
from unlearn.methods.method import Method
from unlearn.methods.rna import RNA
from unlearn.storage.hashing import code_hash

BUILT_IN = "unlearn.methods."
NOT_ARGUMENTS = ("name", "_target_", "preferred")  # `preferred` is read with the other texts


def make_method(config: Mapping[str, Any], rna: RNA) -> Method:
    """The method of a configuration's `method` group.

    Raises UserError, which names the key, for a class or an argument that is not allowed.
    """
    target = config.get("_target_")
    if not isinstance(target, str):
        raise UserError(f"method._target_={target} is not allowed: it must name a class.")
    cls = method_class(target)
    arguments = {key: value for key, value in config.items() if key not in NOT_ARGUMENTS}
    _check_keys(cls, arguments)
    try:
        return cls(**arguments, rna=rna)
    except UserError as error:
        group = "" if str(error).startswith("rna.") else "method."
        raise UserError(f"{group}{error}") from None
    except Exception as error:  # of a user's own class
        raise UserError(f"method ({target}): {type(error).__name__}: {error}") from error


def needs_logits(config: Mapping[str, Any]) -> bool:
    """Whether training with this method needs the whole model."""
    return method_class(config["_target_"]).needs_logits


def is_built_in(target: str) -> bool:
    """Whether `_target_` names a class of this package."""
    return target.startswith(BUILT_IN)


def own_file(target: str) -> Path:
    """The file of the current folder that holds a user's own class."""
    module = target.rpartition(".")[0]
    return Path.cwd() / f"{module.replace('.', '/')}.py"


def own_code_hash(target: str) -> str | None:
    """A hash of the code of a user's own class, on which results depend; None for a class of this package."""
    return None if is_built_in(target) else code_hash(own_file(target))


def method_class(target: str) -> type[Method]:
    """The class that `_target_` names. Raises UserError unless it is a method, of this package or of the user's own."""
    name = target.rpartition(".")[2]
    if is_built_in(target):
        allowed = unlearn.methods.METHODS
        if target != f"{BUILT_IN}{name}" or name not in allowed:
            raise UserError(
                f"method._target_={target} is not allowed.{nearest(name, allowed)} Allowed: {', '.join(allowed)}."
            )
        return getattr(unlearn.methods, name)
    file = own_file(target)
    is_name = "." in target and all(part.isidentifier() for part in target.split("."))  # no path of another folder
    if target.startswith("unlearn.") or not is_name or not file.is_file():
        raise UserError(
            f"method._target_={target} is not allowed: it must name a class of unlearn.methods, or one in a file of "
            f"the current folder, as my_method.Opposite names one of {Path.cwd() / 'my_method.py'}."
        )
    cls = getattr(_module(file), name, None)
    if not (isinstance(cls, type) and issubclass(cls, Method)) or isabstract(cls):
        raise UserError(
            f"method._target_={target} is not allowed: {file} has no complete class {name} that is derived from "
            "MisdirectionMethod or LikelihoodMethod."
        )
    return cls


def _module(file: Path) -> Any:
    """The module of a user's file, imported once. It may import other files of the current folder."""
    name = f"method in {file}"  # no name of another module
    if name in sys.modules:
        return sys.modules[name]
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    spec = spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = module_from_spec(spec)  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UserError(f"method._target_: {file} cannot be imported: {type(error).__name__}: {error}") from error
    return module


def _check_keys(cls: type[Method], arguments: Mapping[str, Any]) -> None:
    """Raise UserError for an argument that the class does not have, for one that is missing, and for a nested value."""
    taken = {field.name: field for field in fields(cls) if field.init and field.name != "rna"}
    for key, value in arguments.items():
        if key not in taken:
            allowed = ", ".join(taken) or "none"
            based = "" if cls.__module__.startswith(BUILT_IN) else f" ~method.{key} takes it out."
            raise UserError(f"method.{key}: unknown key.{nearest(key, taken)} {cls.__name__} takes: {allowed}.{based}")
        if isinstance(value, (dict, list)):
            raise UserError(f"method.{key}={value} is not allowed: a method's arguments are numbers and names.")
    for key, field in taken.items():
        if key not in arguments and field.default is MISSING and field.default_factory is MISSING:
            raise UserError(f"method.{key}: no value was given.")
