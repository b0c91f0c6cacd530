"""Composing conf/ outside of a Hydra job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

CONF = Path(__file__).parents[2] / "conf"


def composed(overrides: list[str], name: str = "config") -> Any:
    """A file of conf/ with these overrides, by default launch.py's; not yet checked. Raises Hydra's errors."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, overrides)
