"""What tests share: configurations composed as on the command line, and tiny models."""

from __future__ import annotations

import gc
import json
import os
import signal
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: pytest-xdist runs a process on each core
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # as `import unlearn` does, where torch has not been imported before
os.environ["WANDB_MODE"] = "offline"
os.environ["HF_HUB_OFFLINE"] = "1"  # no test needs the hub, whose library would wait and ask again

import pytest
import torch
from omegaconf import DictConfig
from transformers import LlamaConfig, LlamaForCausalLM

from unlearn.config.compose import changed, composed
from unlearn.config.schema import Config
from unlearn.config.settle import settle
from unlearn.records.scores import flat, nested

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session", autouse=True)
def _wandb_data(tmp_path_factory: pytest.TempPathFactory) -> None:
    """W&B puts the files of artifacts there until they are uploaded; otherwise into the home directory."""
    os.environ["WANDB_DATA_DIR"] = str(tmp_path_factory.mktemp("wandb-data"))


@pytest.fixture(scope="session", autouse=True)
def _no_wait_for_the_disk() -> Iterator[None]:
    """No test turns the power off, and every fsync would take milliseconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _descriptor: None)
        yield


@pytest.fixture(scope="session")
def conf() -> Callable[..., Config]:
    """Compose and check conf/ with overrides. The same choice of files is composed once, since Hydra takes long."""
    groups = {folder.name for folder in (ROOT / "conf").iterdir() if folder.is_dir()}

    @cache
    def of_files(*chosen: str) -> DictConfig:
        return composed(list(chosen))

    @cache
    def settled(*overrides: str) -> Config:
        chosen = [override for override in overrides if override.partition("=")[0] in groups]
        raw = deepcopy(of_files(*chosen))
        changed(raw, [override for override in overrides if override not in chosen])
        return settle(raw)

    return lambda *overrides: deepcopy(settled(*overrides))


@pytest.fixture
def short(conf: Callable[..., Config], tmp_path: Path) -> Callable[..., Config]:
    """A run of a few steps into a temporary folder, without evaluation and tracking unless overridden."""

    def build(*overrides: str) -> Config:
        config = conf("train.steps=3", "eval=none", "tracker=none", *overrides)
        elsewhere = any(override.startswith("output_root=") for override in overrides)
        return config if elsewhere else replace(config, output_root=str(tmp_path / "outputs"))

    return build


@pytest.fixture
def tiny_llama() -> LlamaForCausalLM:
    """Six layers with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=6,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def write_jsonl(file: Path, rows: list[dict]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def read_jsonl(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def read_metrics(folder: Path) -> dict:
    """metrics.json of a run, under flat names: "unlearned/TASK/QUERY/acc"."""
    return flat(json.loads((folder / "metrics.json").read_text()))


def metrics_of(answers: Any) -> dict:
    """The scores of an evaluation, under the same names."""
    return flat(nested(answers.scores))


def assert_same_results(folder: Path, other: Path) -> None:
    """Scores and samples of two runs are the same, byte for byte."""
    for name in ("scores.parquet", "samples.parquet"):
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name


TIMED = ("tokens_per_second", "seconds", "peak_memory_mb", "memory_mb")  # what may differ between equal runs


def untimed(values: dict) -> dict:
    return {name: value for name, value in values.items() if name.rpartition("/")[2] not in TIMED}


def pytest_configure() -> None:
    """Let processes that tests start hear Ctrl-C: behind a shell's `&` they would ignore it, as pytest does."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Collecting garbage need not look at what has been imported: that takes a third of a second each time."""
    gc.freeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden-dir", help="replay this folder of golden trajectories instead of tests/golden")
    parser.addoption("--mmlu-dir", help="ask all of the MMLU in this folder (test/SUBJECT_test.csv), not a sample")
    parser.addoption("--kills", type=int, default=4, help="how often runs are killed, and a quarter as often searches")


@pytest.hookimpl(trylast=True)  # what is not selected is gone by then
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the longest tests begin first (SLURM's, then those with slow ones), then the largest.

    So no process is left with a long file when the others have ended (`--no-loadscope-reorder` keeps this order).
    """
    marks, sizes = defaultdict(set), Counter(item.path for item in items)
    for item in items:
        marks[item.path] |= {mark.name for mark in item.iter_markers()}
    items.sort(key=lambda item: ("slurm" not in marks[item.path], "slow" not in marks[item.path], -sizes[item.path]))
