"""Compose conf/ outside of a Hydra job, as for a command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

CONF = Path(__file__).parents[2] / "conf"


def composed(overrides: list[str]) -> Any:
    """conf/ with these overrides, as on launch.py's command line, not yet checked."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides)
