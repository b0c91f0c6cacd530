"""Composing conf/ outside of a Hydra job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

CONF = Path(__file__).parents[2] / "conf"


def composed(overrides: list[str]) -> Any:
    """The configuration that launch.py composes from these overrides, not yet checked. Raises Hydra's errors."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides)
