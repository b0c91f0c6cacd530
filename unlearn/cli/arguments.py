"""The arguments of `unlearn attack`: folders of runs, attacks, and overrides, in any order."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from unlearn.config.compose import ALL, attack_names, is_override
from unlearn.errors import UserError, nearest

CHOSEN = "attack="


@dataclass
class AttackArguments:
    """RUN..., attack=NAME,..., attack.KEY=VALUE, and overrides of the evaluation and the model's place."""

    folders: list[Path] = field(default_factory=list)
    attacks: list[str] = field(default_factory=list)
    attack_overrides: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)


def attack_arguments(arguments: list[str]) -> AttackArguments:
    """Sort the arguments by kind; without attack=NAME all attacks are chosen.

    Raises UserError for a word that is neither a folder nor KEY=VALUE.
    """
    parsed = AttackArguments()
    for argument in arguments:
        if not is_override(argument):
            parsed.folders.append(_folder(argument))
        elif argument.startswith(CHOSEN):
            parsed.attacks += argument.removeprefix(CHOSEN).split(",")
        elif argument.lstrip("+").startswith("attack."):
            parsed.attack_overrides.append(argument)
        else:
            parsed.overrides.append(argument)
    parsed.attacks = parsed.attacks or [ALL]
    return parsed


def _folder(argument: str) -> Path:
    if not Path(argument).is_dir():
        raise UserError(
            f"{argument} is not the folder of a run.{nearest(argument, [f'{CHOSEN}{n}' for n in attack_names()])}"
        )
    return Path(argument)
