"""An attack from its file in conf/attack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

from hydra.utils import get_class
from omegaconf import OmegaConf

from unlearn.attacks.attack import Attack
from unlearn.config.compose import ALL, attack_names, composed
from unlearn.errors import UserError, nearest

ROOM = "unlearn.attacks."


@dataclass(frozen=True)
class Planned:
    """An attack, its name, and the configuration that determines what it does."""

    name: str
    attack: Attack
    config: Mapping[str, Any]


def plan(names: Sequence[str], overrides: Sequence[str]) -> list[Planned]:
    """The attacks of these names, or all, with `attack.KEY=VALUE` overrides. Raises UserError for what is wrong."""
    known = attack_names()
    for name in names:
        if name not in known:
            raise UserError(f"attack={name}: unknown.{nearest(name, known)} Allowed: {', '.join(known)}.")
    chosen = [name for name in known if name != ALL] if ALL in names else list(dict.fromkeys(names))
    if overrides and len(chosen) > 1:
        raise UserError(f"{overrides[0]}: attack.KEY=VALUE goes with one attack, not with {', '.join(chosen)}.")
    return [_planned(name, overrides) for name in chosen]


def _planned(name: str, overrides: Sequence[str]) -> Planned:
    raw = composed(list(overrides), f"attack/{name}").attack
    config = {str(key): value for key, value in OmegaConf.to_object(raw).items()}  # type: ignore[union-attr]
    target = str(config.pop("_target_"))
    config.pop("name")
    made: Any = get_class(target) if target.startswith(ROOM) else object  # a configuration must not run anything else
    if not issubclass(made, Attack):
        raise UserError(f"attack._target_={target} is not allowed: it must name an attack below {ROOM[:-1]}.")
    allowed = {field.name: field for field in fields(made)}
    for key in config:
        if key not in allowed:
            raise UserError(
                f"attack.{key}: unknown key.{nearest(str(key), list(allowed))} Allowed: {', '.join(allowed)}."
            )
    for key, field in allowed.items():
        if field.default is MISSING and key not in config:
            raise UserError(f"attack.{key}: no value was given.")
    return Planned(name, made(**config), {"target": target, **config})
