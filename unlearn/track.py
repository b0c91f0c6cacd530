"""Where a run's curves and metrics go: always to files in its folder, to Weights & Biases on top.

A tracker is a context manager: whatever happens inside, its W&B run is finished, so that the runs of a multirun
never bleed into each other.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import requests
import wandb

from unlearn.files import write_atomically
from unlearn.train import Record


class Tracker:
    """Writes train.jsonl, and sends the same to W&B if asked to."""

    def __init__(self, folder: Path, wandb_run: wandb.Run | None = None) -> None:
        self._file = folder / "train.jsonl"
        self._lines = self._file.open("a", encoding="utf-8")
        self._wandb = wandb_run
        self._sent = -1  # the last step that an earlier attempt has sent to W&B

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._wandb is not None and error is not None and not isinstance(error, Exception):
            self._wandb.mark_preempting()  # a signal: another attempt will go on with this run
        self.close(failed=error is not None)

    @property
    def address(self) -> str | None:
        """Where W&B shows this run, or how to bring it there."""
        if self._wandb is None:
            return None
        if self._wandb.offline:
            return f"offline, upload with: wandb sync {Path(self._wandb.dir).parent}"
        return self._wandb.url

    def rewind(self, steps: int) -> None:
        """Go on after `steps` steps: what an earlier attempt logged beyond them will be logged again."""
        kept: list[str] = []
        for line in self._file.read_text(encoding="utf-8").split("\n"):
            try:
                step = json.loads(line)["step"]
            except json.JSONDecodeError:
                break  # the end, or where an attempt was cut short
            self._sent = step
            if step < steps:
                kept.append(line + "\n")
        self._lines.close()
        write_atomically(self._file, "".join(kept))
        self._lines = self._file.open("a", encoding="utf-8")

    def log_step(self, record: Record) -> None:
        """One line of train.jsonl, flushed, and W&B's curves over `train/step`."""
        values = record.line()
        self._lines.write(json.dumps(values) + "\n")
        self._lines.flush()
        if self._wandb is not None and record.step > self._sent:
            self._wandb.log({f"train/{name}": value for name, value in values.items()})

    def sync(self) -> None:
        """Bring all lines to the disk: what goes on from a later state counts on them."""
        os.fsync(self._lines.fileno())

    def log_metrics(self, metrics: dict[str, float]) -> None:
        """Evaluation metrics as one logged row of the W&B run, and with the final training figures in its summary."""
        if self._wandb is not None:
            # Beside train/* W&B would put the last train/step once more.
            self._wandb.log({name: value for name, value in metrics.items() if not name.startswith("train/")})
            self._wandb.summary.update(metrics)

    def close(self, failed: bool) -> None:
        """Finish the W&B run, as failed if it did."""
        self._lines.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=1 if failed else 0)
            self._wandb = None


def start_wandb(
    folder: Path,
    *,
    run_id: str,
    name: str,
    config: dict[str, Any],
    project: str | None,
    entity: str | None,
    mode: str,
    group: str | None,
    tags: list[str],
    timeout_s: int,
) -> wandb.Run:
    """A W&B run in `folder`/wandb; one of the same `run_id` is continued.

    `mode` "auto" is online where the user is logged in and the server answers within `timeout_s` seconds, else
    offline without a question; `wandb sync` uploads an offline run later. WANDB_MODE, if set, wins over "auto".
    """
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or ("online" if _server_answers(timeout_s) else "offline")
    run = wandb.init(
        dir=folder,
        id=run_id,
        resume="allow",
        name=name,
        config=config,
        project=project,
        entity=entity,
        group=group,
        tags=tags,
        mode=mode,  # type: ignore[arg-type]
        reinit="create_new",
        settings=wandb.Settings(silent=True, console="off", init_timeout=max(timeout_s, 30)),
    )
    run.define_metric("train/step")
    run.define_metric("train/*", step_metric="train/step")
    return run


def _server_answers(timeout_s: int) -> bool:
    """Whether the user is logged in and the server can be reached."""
    settings = wandb.setup().settings
    host = settings.base_url
    logged_in = settings.api_key or os.environ.get("WANDB_API_KEY") or requests.utils.get_netrc_auth(host)
    if not logged_in:
        return False
    try:
        return requests.get(f"{host}/healthz", timeout=timeout_s).status_code < 500
    except requests.RequestException:
        return False
