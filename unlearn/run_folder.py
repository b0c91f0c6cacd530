"""A run's folder: what is in it, written so that a crash never leaves half a file.

run.json            configuration, versions, hashes, status (running, done, failed)
train.jsonl         a line per logged step
metrics.json        {model}/{task}/{query}/{metric} and train/*
samples/            per question: log-likelihoods, choice, correct
delta.safetensors   the changed matrices
.hydra/             Hydra's own record of the configuration
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from unlearn.errors import UserError

ROLES = "roles.json"  # inside samples/: role -> tasks, for whoever puts tasks together again
PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "lm_eval", "hydra-core", "safetensors", "wandb")


def write_atomically(file: Path, content: str | bytes) -> None:
    """Write to a temporary file beside `file`, fsync, rename."""
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with scratch.open("wb") as out:
            out.write(content.encode() if isinstance(content, str) else content)
            out.flush()
            os.fsync(out.fileno())
        scratch.replace(file)
    finally:
        scratch.unlink(missing_ok=True)


def write_json(file: Path, content: Any) -> None:
    """Write indented JSON atomically."""
    write_atomically(file, json.dumps(content, indent=2) + "\n")


class RunFolder:
    """One run's folder and its run.json."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record: dict[str, Any] = {}
        if self.file("run.json").is_file():
            self.record = json.loads(self.file("run.json").read_text())

    def file(self, name: str) -> Path:
        """A file of this folder."""
        return self.path / name

    @property
    def done(self) -> bool:
        """Whether the run that lives here is finished."""
        return self.record.get("status") == "done"

    def claim(self, identity: dict[str, Any]) -> None:
        """Raise UserError if a run with another identity lives here."""
        other = self.record.get("identity")
        if other is not None and other != identity:
            differing = ", ".join(sorted(_differences(other, identity))) or "version of the results"
            raise UserError(
                f"{self.path} holds another run (it differs in {differing}). Choose another output_dir, or leave it "
                f"out: runs then get a folder of their own."
            )

    def verify(self, inputs: dict[str, Any]) -> None:
        """Raise UserError if the run that lives here saw other data or another model under the same names."""
        other = self.record.get("inputs")
        if other is not None and other != inputs:
            differing = ", ".join(sorted(_differences(other, inputs)))
            raise UserError(
                f"{self.path} holds a run of the same configuration over other inputs (they differ in {differing}). "
                f"Set data.name or model.name to tell them apart, or choose an output_dir."
            )

    def start(self, config: dict[str, Any], identity: dict[str, Any], inputs: dict[str, Any]) -> None:
        """Remove what an unfinished run left, and describe this one."""
        for name in ("train.jsonl", "metrics.json", "delta.safetensors"):
            self.file(name).unlink(missing_ok=True)
        shutil.rmtree(self.file("samples"), ignore_errors=True)
        self.record = {
            "status": "running",
            "config": config,
            "identity": identity,
            "inputs": inputs,
            "code": _code_version(),
            "python": sys.version.split()[0],
            "packages": {name: _package_version(name) for name in PACKAGES},
        }
        write_json(self.file("run.json"), self.record)

    def finish(self, metrics: dict[str, float]) -> None:
        """Write the metrics, then say that the run is done."""
        write_json(self.file("metrics.json"), metrics)
        self.record["status"] = "done"
        write_json(self.file("run.json"), self.record)

    def fail(self, error: str) -> None:
        """Say that the run failed, and why; what was written stays."""
        self.record |= {"status": "failed", "error": error}
        write_json(self.file("run.json"), self.record)

    def keep_hydra_files(self, hydra_folder: Path) -> None:
        """Copy Hydra's record of the configuration from where Hydra wrote it."""
        source = hydra_folder / ".hydra"
        if source.is_dir() and source.resolve() != self.file(".hydra").resolve():
            shutil.copytree(source, self.file(".hydra"), dirs_exist_ok=True)


def _differences(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> set[str]:
    """Dotted keys at which two nested dictionaries differ."""
    found: set[str] = set()
    for key in a.keys() | b.keys():
        x, y = a.get(key), b.get(key)
        if isinstance(x, dict) and isinstance(y, dict):
            found |= _differences(x, y, f"{prefix}{key}.")
        elif x != y:
            found.add(f"{prefix}{key}")
    return found


def _package_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _code_version() -> dict[str, Any]:
    """This package's version, and the commit it was run from if it was run from a checkout."""
    root = Path(__file__).parent.parent

    def git(*args: str) -> str | None:
        try:
            ran = subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return ran.stdout.strip() if ran.returncode == 0 else None

    own = (root / "launch.py").is_file()  # not some repository that happens to hold a virtual environment
    status = git("status", "--porcelain") if own else None
    return {
        "version": _package_version("unlearn"),
        "commit": git("rev-parse", "HEAD") if own else None,
        "changed": bool(status) if status is not None else None,
    }
