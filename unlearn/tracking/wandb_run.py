"""A W&B run: its start, and the tables and histograms that it is sent.

Whatever imports wandb stands here and is itself imported when a run is tracked: that takes as long as importing torch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import requests
import wandb

from unlearn.records.samples import Sample
from unlearn.records.scores import Score
from unlearn.tracking.wandb_tables import QUESTIONS, SUMMARIES, Row, max_logit_values

BINS = 64  # of a histogram


def histograms(scores: Sequence[Score], samples: Sequence[Sample]) -> dict[str, wandb.Histogram]:
    """maxlogit/MODEL/NAME/QUERY, of each model and each task, group and role that was measured."""
    return {
        f"maxlogit/{model}/{name}/{query}": wandb.Histogram(np_histogram=np.histogram(values, bins=BINS))
        for (model, name, query), values in max_logit_values(scores, samples).items()
    }


def question_tables(rows: list[Row]) -> dict[str, wandb.Table]:
    """The rows as one table, or as several if one table cannot hold them: W&B silently drops rows beyond its limit.

    The limit is that of a table's artifact, which W&B shows. W&B does not show the second copy below media/, which is
    limited to 10,000 rows.
    """
    size = wandb.Table.MAX_ARTIFACT_ROWS
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    names = ["questions", *(f"questions-{number}" for number in range(2, len(parts) + 1))]
    return {name: wandb.Table(QUESTIONS, part) for name, part in zip(names, parts, strict=False)}


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
    job_type: str,
    tags: list[str],
    timeout_s: int,
) -> wandb.Run:
    """Start a W&B run in `folder`/wandb, or resume the one with this `run_id`.

    `mode` "auto" is online if the user is logged in and the server answers within `timeout_s` seconds, and else
    offline; `wandb sync` uploads an offline run later. WANDB_MODE, if set, overrides "auto".
    """
    if mode == "auto":
        mode = automatic_mode(timeout_s)
    run = wandb.init(
        dir=folder,
        id=run_id,
        resume="allow",
        name=name,
        config=config,
        project=project,
        entity=entity,
        group=group,
        job_type=job_type,
        tags=tags,
        mode=mode,  # type: ignore[arg-type]
        reinit="create_new",
        settings=wandb.Settings(silent=True, console="off", init_timeout=max(timeout_s, 30)),
    )
    run.define_metric("train/step")
    run.define_metric("train/*", step_metric="train/step")
    for curve, kept in SUMMARIES.items():
        run.define_metric(f"train/{curve}", step_metric="train/step", summary=kept)
    return run


def automatic_mode(timeout_s: int) -> str:
    """The mode for tracker.mode=auto: WANDB_MODE if it is set, else "online" if the server answers, else "offline"."""
    return os.environ.get("WANDB_MODE") or ("online" if _server_answers(timeout_s) else "offline")


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
