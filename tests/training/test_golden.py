"""Replay the trajectories that the published loops produced, step by step.

`tests/golden` holds numbers: a tiny model's weights up to layer l, token ids, and for each run its control vectors,
losses and final matrices (float32, CPU, eager attention, transformers 4.46.3). `--golden-dir DIR` replays any folder
of that layout, with `{"text": ...}` lines and a tokenizer in place of `tokens.json`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from unlearn.data.batches import batches
from unlearn.data.corpora import Topic, load_topic
from unlearn.methods.adaptive_rmu import AdaptiveRMU
from unlearn.methods.misdirection_loss import Misdirection
from unlearn.methods.noise import Augmentation
from unlearn.methods.rmu import RMU
from unlearn.methods.rna import RNA
from unlearn.methods.rsv import RSV
from unlearn.models.cutting import CutModel
from unlearn.models.loading import Source, load_tokenizer, load_up_to
from unlearn.training.loop import train_variants
from unlearn.training.optimizer import Optimizer
from unlearn.training.variant import Variant, make_variant

OWN = Path(__file__).parent / "golden"
PAD = 1  # the model's padding token


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = Path(metafunc.config.getoption("--golden-dir") or OWN)
    golden = json.loads((folder / "golden.json").read_text())
    metafunc.parametrize("name", golden["runs"])
    metafunc.parametrize("folder", [folder], ids=[folder.name])


class PublishedNoise(Augmentation):
    """One generator a step, as the script that wrote the trajectories has it."""

    def __call__(self, target_BTD, _counted_BT, _topic, step):
        noise_BTD = torch.randn(target_BTD.shape, generator=torch.Generator().manual_seed(1000 + step))
        return target_BTD + noise_BTD.to(target_BTD.device) * self.rna.nu


@dataclass
class Replay:
    golden: dict[str, Any]
    expected: dict[str, Any]  # this run's entry
    stored: dict[str, torch.Tensor]
    variant: Variant


@cache
def replays(folder: Path, device: str = "cpu") -> dict[str, Replay]:
    """All runs by name. Those that read the same texts are trained together."""
    golden = json.loads((folder / "golden.json").read_text())
    source = Source(str(folder / "model"), attn_implementation="eager", dtype="float32", device=device)
    cut = CutModel(load_up_to(source, golden["layer"]), golden["layer"])
    together: dict[Any, list[str]] = {}
    for name, expected in golden["runs"].items():
        together.setdefault(expected.get("cut") or expected["method"] == "rsv", []).append(name)
    found: dict[str, Replay] = {}
    for names in together.values():
        replayed = [_begun(folder, golden, name, cut) for name in names]
        stream = batches(
            topics(folder, golden, replayed[0].expected, source),
            steps=golden["steps"],
            batch_size=golden["batch_size"],
            pad_id=PAD,
            side="left",
        )
        train_variants(cut, [replay.variant for replay in replayed], stream, mask_padding=True)
        found.update(zip(names, replayed, strict=True))
    return found


def _begun(folder: Path, golden: dict[str, Any], name: str, cut: CutModel) -> Replay:
    expected, stored = golden["runs"][name], load_file(folder / f"{name}.safetensors")
    controls = {topic: stored[f"control.{topic}"].to(cut.device) for topic in ("bio", "cyber")}
    noise = PublishedNoise(RNA(expected["nu"]), 0)
    objective = Misdirection(method(expected), controls, golden["alpha"], "none", noise)
    of = golden["optimizer"]
    optimizer = Optimizer(
        "adamw_published",
        betas=tuple(of["betas"]),
        eps=of["eps"],
        weight_decay=of["weight_decay"],
        precision="model",
    )
    return Replay(golden, expected, stored, make_variant(objective, cut.frozen, of["lr"], optimizer))


def method(expected):
    if expected["method"] == "adaptive_rmu":
        return AdaptiveRMU(expected["scale"], norm="first_batch")
    return {"rmu": RMU, "rsv": RSV}[expected["method"]](expected["c"])


def topics(folder, golden, expected, source):
    """Both topics read the same retain list; RSV cuts it to the topic's length; `cut` cuts everything."""
    found = []
    for topic in ("bio", "cyber"):
        length = expected.get("cut") or golden["max_length"][topic]
        retain_length = length if expected["method"] == "rsv" else expected.get("cut") or golden["max_length"]["retain"]
        if (folder / "tokens.json").is_file():
            ids = json.loads((folder / "tokens.json").read_text())
            forget, retain = (
                [row[:n] for row in ids[part]] for part, n in ((f"forget-{topic}", length), ("retain", retain_length))
            )
            found.append(Topic(topic, forget, retain, {}))
        else:
            files = str(folder / f"forget-{topic}.jsonl"), str(folder / "retain.jsonl")
            found.append(
                load_topic(
                    topic,
                    *files,
                    load_tokenizer(source),
                    max_length=length,
                    retain_max_length=retain_length,
                    documents=golden["steps"] // 2 * golden["batch_size"],
                    on_exhausted="error",
                )
            )
    return found


def test_losses_matrices_and_coefficients_are_those_of_the_published_loops(folder, name, record_property):
    got = replays(folder)[name]
    steps = got.expected["log"]
    alpha = got.golden["alpha"]
    assert len(got.variant.records) == len(steps) == got.golden["steps"]
    pairs = [(r.forget_loss, s["forget_loss"]) for r, s in zip(got.variant.records, steps, strict=True)]
    pairs += [(alpha * r.retain_loss, s["retain_loss"]) for r, s in zip(got.variant.records, steps, strict=True)]
    drift = {k: (w.detach() - got.stored[short(k, got.stored)]).abs().max() for k, w in got.variant.weights.items()}
    record_property("largest relative loss deviation", max(abs(a - b) / max(abs(b), 1e-2) for a, b in pairs))
    record_property("largest matrix deviation", max(d.item() for d in drift.values()))
    for ours, theirs in pairs:
        assert abs(ours - theirs) <= 1e-5 * abs(theirs) + 1e-7
    assert all(d <= 1e-5 for d in drift.values())
    assert sorted(got.variant.weights) == sorted(got.expected["changed"])
    coefficients = got.expected["adaptive_coefficients"]
    if coefficients is not None:
        state = got.variant.objective.state()
        measured = [state[f"coefficient.{topic}"].item() for topic in ("bio", "cyber")]
        assert measured == pytest.approx([coefficients[i] for i in sorted(coefficients)], rel=1e-5)


def short(name, stored):
    """The stored name of one of our full names."""
    return next(key for key in stored if name.endswith(key))
