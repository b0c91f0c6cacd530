"""An attack from its file in conf/attack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from importlib import import_module
from importlib.util import find_spec
from itertools import product
from typing import Any

from omegaconf import OmegaConf

from unlearn.attacks.attack import Attack
from unlearn.config.compose import ALL, CONF, attack_names, composed
from unlearn.errors import UserError, nearest

ROOM = "unlearn.attacks."
PUBLISHED = "published"  # a key that says where an attack's settings were published; `all` leaves such attacks out


@dataclass(frozen=True)
class Planned:
    """An attack, its name, and the arguments that it was made with."""

    name: str
    attack: Attack
    arguments: Mapping[str, Any]


def plan(names: Sequence[str], overrides: Sequence[str]) -> list[Planned]:
    """The attacks of these names, or all, with `attack.KEY=VALUE` overrides. Raises UserError for what is wrong.

    A list for an argument that takes one value, as in attack.lr=[1e-4,1e-3], makes an attack for each.
    """
    allowed = attack_names()
    for name in names:
        if name not in allowed:
            raise UserError(f"attack={name}: unknown.{nearest(name, allowed)} Allowed: {', '.join(allowed)}.")
    every = [name for name in allowed if name != ALL and PUBLISHED not in OmegaConf.load(CONF / f"attack/{name}.yaml")]
    chosen = list(dict.fromkeys(other for name in names for other in (every if name == ALL else [name])))
    if overrides and len(chosen) > 1:
        raise UserError(f"{overrides[0]}: attack.KEY=VALUE goes with one attack, not with {', '.join(chosen)}.")
    return [planned for name in chosen for planned in _planned(name, overrides)]


def _planned(name: str, overrides: Sequence[str]) -> list[Planned]:
    raw = composed(list(overrides), f"attack/{name}").attack
    config = {str(key): value for key, value in OmegaConf.to_object(raw).items()}  # type: ignore[union-attr]
    target = str(config.pop("_target_"))
    for about in ("name", PUBLISHED):
        config.pop(about, None)
    attack_class = _attack_class(target)
    allowed = {field.name: field for field in fields(attack_class)}
    for key in config:
        if key not in allowed:
            raise UserError(f"attack.{key}: unknown key.{nearest(key, list(allowed))} Allowed: {', '.join(allowed)}.")
    for key, field in allowed.items():
        if field.default is MISSING and key not in config:
            raise UserError(f"attack.{key}: no value was given.")
    several = [key for key in config if isinstance(config[key], list) and "Sequence" not in str(allowed[key].type)]
    variants = [config | dict(zip(several, values, strict=True)) for values in product(*(config[k] for k in several))]
    if not variants:
        raise UserError(f"attack.{several[0]}: an empty list is not allowed.")
    return [Planned(name, attack_class(**arguments), arguments) for arguments in variants]


def _attack_class(target: str) -> Any:
    """The class of this name. A configuration must not run anything but an attack."""
    if target.startswith(ROOM):
        module, _, name = target.rpartition(".")
        attack_class = getattr(import_module(module), name, None) if find_spec(module) else None
        if isinstance(attack_class, type) and issubclass(attack_class, Attack):
            return attack_class
    raise UserError(f"attack._target_={target} is not allowed: it must name an attack below {ROOM[:-1]}.")
