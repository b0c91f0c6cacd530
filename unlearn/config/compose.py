"""Composing conf/ outside of a Hydra job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

ALL = "all"
CONF = Path(__file__).parents[2] / "conf"


def attack_names() -> list[str]:
    """The files of conf/attack, and `all`, which stands for all of them."""
    return [*sorted(file.stem for file in (CONF / "attack").glob("*.yaml")), ALL]


def composed(overrides: list[str], name: str = "config") -> Any:
    """A file of conf/ with these overrides, by default launch.py's; not yet checked. Raises Hydra's errors."""
    if GlobalHydra.instance().is_initialized():  # inside of launch.py, which reads conf/ as well
        return compose(name, overrides)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, overrides)
