"""Figures as they are measured: printed at once, and kept in a JSON file that is whole at any moment."""

from __future__ import annotations

import json
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from unlearn.storage.files import write_json


class Results:
    """Rows of figures, each of a section and a case. An error of a case is a row, too, and the others go on."""

    def __init__(self, file: Path | None, device: torch.device, options: dict[str, Any]) -> None:
        self._file = file
        self.rows: list[dict[str, Any]] = []
        self.about = {
            "date": time.strftime("%Y-%m-%d"),
            "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "CPU",
            "driver": _driver() if device.type == "cuda" else None,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "transformers": transformers.__version__,
            "options": options,
        }
        print(json.dumps(self.about), flush=True)

    @property
    def failed(self) -> bool:
        """Whether a case raised an error or a check did not pass."""
        return any("error" in row or row.get("passed") is False for row in self.rows)

    def add(self, section: str, case: str, **figures: Any) -> None:
        """Keep and print a row."""
        self.rows.append({"section": section, "case": case, **figures})
        shown = "  ".join(f"{name} {_short(value)}" for name, value in figures.items())
        print(f"{section}  {case}: {shown}", flush=True)
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._file, {"about": self.about, "rows": self.rows})

    def attempt(self, section: str, case: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """Add what `measure` returns, or its error; None in case of an error."""
        start = time.perf_counter()
        try:
            figures = measure()
        except Exception as error:  # a measurement that fails must not end the others
            self._add_error(section, case, error)
            return None
        self.add(section, case, **figures, wall_s=round(time.perf_counter() - start, 1))
        return figures

    def guard(self, section: str, run: Callable[[], None]) -> None:
        """Run a whole section. What fails outside its cases (an import, a model that does not fit) is a row, too."""
        try:
            run()
        except Exception as error:
            self._add_error(section, "section", error)

    def _add_error(self, section: str, case: str, error: Exception) -> None:
        self.add(section, case, error=f"{type(error).__name__}: {str(error)[:300]}")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _driver() -> str | None:
    file = Path("/proc/driver/nvidia/version")
    found = re.search(r"\d+\.\d+(\.\d+)?", file.read_text()) if file.is_file() else None
    return found[0] if found else None
