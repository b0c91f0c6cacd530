"""Replay trajectories of NPO, SimNPO and DPO as published: whole runs with `preset=paper`, from texts to the delta.

`golden/make_preference.py` wrote them and shares no code with `unlearn`. Learning rate, lengths and dtype are the
golden's; alpha by topic, beta and all ways of the published code are those of the configuration.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.conftest import read_jsonl
from tests.training.test_golden import PublishedNoise
from unlearn.config.identity import run_folder
from unlearn.experiment import run_together

OWN = Path(__file__).parent / "golden" / "preference"
GOLDEN = json.loads((OWN / "golden.json").read_text())
TOPICS = ("bio", "cyber")


def overrides(expected):
    """What a user would write on the command line to get this run."""
    data = {f"{topic}.forget": OWN / f"forget-{topic}.jsonl" for topic in TOPICS}
    data |= {f"{topic}.retain": OWN / "retain.jsonl" for topic in TOPICS}
    for topic in TOPICS:
        data |= {f"{topic}.{key}": GOLDEN["max_length"][topic] for key in ("max_length", "retain_max_length")}
    keys = {f"data.topics.{key}": value for key, value in data.items()}
    keys |= {"model.path": OWN / "model", "model.num_layers": GOLDEN["layers"], "model.dtype": GOLDEN["dtype"]}
    keys |= {"model.device": "cpu", "method.retain": expected["retain"], "rna.nu": expected["nu"]}
    keys |= {"train.steps": GOLDEN["steps"], "train.lr": GOLDEN["optimizer"]["lr"]}
    if expected["method"] == "dpo":
        keys["method.preferred"] = OWN / "preferred.txt"
    groups = ("preset=paper", "model=zephyr_7b_beta", "data=wmdp", f"method={expected['method']}")
    return *groups, *(f"{key}={value}" for key, value in keys.items())


def matrices_of(name):
    """A run's matrices after its last step, by their full names."""
    stored = load_file(OWN / "matrices.safetensors")
    return {key.removeprefix(f"{name}."): w for key, w in stored.items() if key.startswith(f"{name}.")}


@pytest.fixture(scope="module")
def folders(conf, tmp_path_factory):
    """The folder of each run. With RNA and without, methods are trained together."""
    common = ("eval=none", "tracker=none", f"output_root={tmp_path_factory.mktemp('golden')}")
    configs = {name: conf(*common, *overrides(expected)) for name, expected in GOLDEN["runs"].items()}
    with pytest.MonkeyPatch.context() as patch:  # only the draws differ: one padded tensor a step
        patch.setattr("unlearn.methods.noise.Augmentation", PublishedNoise)
        for name in (name for name in configs if not name.endswith("_rna")):
            run_together([configs[name], configs[f"{name}_rna"]])
    return {name: run_folder(config) for name, config in configs.items()}


@pytest.mark.parametrize("name", GOLDEN["runs"])
def test_losses_and_matrices_are_those_of_the_published_form(name, folders, record_property):
    expected, folder = GOLDEN["runs"][name], folders[name]
    lines = read_jsonl(folder / "train.jsonl")
    assert [(line["step"], line["topic"]) for line in lines] == [(s["step"], s["topic"]) for s in expected["log"]]
    pairs = [
        (line[key], step[key])
        for line, step in zip(lines, expected["log"], strict=True)
        for key in ("forget_loss", "retain_loss", "loss")
    ]
    losses = max(abs(ours - theirs) / abs(theirs) for ours, theirs in pairs)

    found, frozen = load_file(folder / "delta.safetensors"), load_file(OWN / "model" / "model.safetensors")
    theirs = matrices_of(name)
    assert sorted(found) == sorted(theirs)
    of_matrix = max(((found[k] - w).norm() / w.norm()).item() for k, w in theirs.items())
    of_change = max(((found[k] - w).norm() / (w - frozen[k]).norm()).item() for k, w in theirs.items())
    record_property("largest relative loss deviation", losses)
    record_property("largest relative matrix deviation", of_matrix)
    record_property("the same, relative to the matrix's change", of_change)
    assert losses <= 1e-5
    assert of_matrix <= 1e-5
    assert of_change <= 1e-4  # ten times what was measured: rounding differs between processors
