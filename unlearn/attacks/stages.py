"""A model's metrics under an attack, in a file that is written after each level."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unlearn.attacks.attack import Metrics
from unlearn.storage.files import write_json

UNLEARNED, BASE, RETRAINED = "unlearned", "base", "retrained"  # labels of models


@dataclass(frozen=True)
class Stages:
    """A model's metrics at each level of an attack; beside it those of other models under the same attack."""

    file: Path
    about: Mapping[str, Any]
    levels: dict[str, Metrics]
    others: dict[str, dict[str, Metrics]] = field(default_factory=dict)  # "base", "retrained"

    @classmethod
    def read(cls, file: Path, about: Mapping[str, Any]) -> Stages:
        """What the file holds; nothing if there is none."""
        record = json.loads(file.read_text()) if file.is_file() else {"stages": {}}
        others = {label: record[label] for label in (BASE, RETRAINED) if label in record}
        return cls(file, about, record["stages"], others)

    def add(self, level: float, metrics: Metrics) -> None:
        """Keep a level."""
        self.levels[f"{level:g}"] = metrics
        self.write()

    def write(self) -> None:
        """Write the file."""
        write_json(self.file, {**self.about, "stages": self.levels, **self.others})
