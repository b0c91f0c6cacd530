"""What is known of a model under an attack, in a file that is written after each level."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unlearn.attacks.attack import Metrics
from unlearn.storage.files import write_json

BASE, IGNORANT = "base", "ignorant"  # labels of the models beside the unlearned one


@dataclass(frozen=True)
class Stages:
    """A model's metrics at each level of an attack, in a file that is written after each; beside it other models'."""

    file: Path
    about: Mapping[str, Any]
    found: dict[str, Metrics]
    others: dict[str, dict[str, Metrics]] = field(default_factory=dict)  # "base" and "ignorant"

    @classmethod
    def read(cls, file: Path, about: Mapping[str, Any]) -> Stages:
        """What the file has; nothing if there is none."""
        known = json.loads(file.read_text()) if file.is_file() else {"stages": {}}
        return cls(file, about, known["stages"], {name: known[name] for name in (BASE, IGNORANT) if name in known})

    def add(self, level: float, metrics: Metrics) -> None:
        """Keep a level."""
        self.found[f"{level:g}"] = metrics
        self.write()

    def write(self) -> None:
        """Write the file."""
        write_json(self.file, {**self.about, "stages": self.found, **self.others})
