"""Attacking a finished run: its model, and the base model for comparison, asked after each stage of each attack.

Results go to RUN/attacks/NAME-HASH.json after each stage, the base model's to the cache that all runs share. What is
there is not asked again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from unlearn.attacks.attack import Attack, Victim
from unlearn.attacks.make import Planned
from unlearn.config.identity import RESULTS_VERSION
from unlearn.config.schema import Config
from unlearn.errors import UserError
from unlearn.evaluate.cache import cache_place
from unlearn.evaluate.harness import evaluate
from unlearn.evaluate.questions import CACHE
from unlearn.evaluate.roles import role_means
from unlearn.methods.misdirection import CONTROL
from unlearn.models.delta import check_delta, load_delta, load_state
from unlearn.models.group import ModelGroup
from unlearn.models.loading import load_whole
from unlearn.runs.evaluation import run_config
from unlearn.runs.folder import RunFolder
from unlearn.runs.inputs import Inputs, load_evaluation_inputs
from unlearn.screen import console, say
from unlearn.storage.files import write_json
from unlearn.storage.hashing import json_sha256
from unlearn.storage.lock import FolderLock

QUERIES = ("default", "perturbed")  # that are asked under attack, of those of the run
UNATTACKED = "none"
Metrics = dict[str, float]


@dataclass(frozen=True)
class Stages:
    """A model's metrics at each stage of an attack, in a file that is written after each."""

    file: Path
    found: dict[str, Metrics]

    @classmethod
    def read(cls, file: Path) -> Stages:
        """What the file has; nothing if there is none."""
        return cls(file, json.loads(file.read_text())["stages"] if file.is_file() else {})

    def add(self, level: float, metrics: Metrics, about: Mapping[str, Any]) -> None:
        """Keep a stage."""
        self.found[f"{level:g}"] = metrics
        write_json(self.file, {**about, "stages": self.found})


def attack(folders: Sequence[Path], attacks: Sequence[Planned], overrides: Sequence[str]) -> None:
    """Attack finished runs, show a table of each. Raises UserError for a folder that holds none."""
    for path in folders:
        folder = RunFolder(path)
        if not folder.done:
            raise UserError(f"{path}: there is no finished run here (no run.json with the status done).")
        with FolderLock(folder.path):
            _attack(folder, attacks, list(overrides))


def _attack(folder: RunFolder, attacks: Sequence[Planned], overrides: list[str]) -> None:
    config = _configuration(folder, overrides)
    inputs = load_evaluation_inputs(config)
    model = load_whole(inputs.source)
    delta = folder.file("delta.safetensors")
    weights, metadata = load_delta(delta)
    check_delta(model, weights, metadata)
    corpora = {name: {"forget": t.forget, "retain": t.retain} for name, t in config.data.topics.items()}
    longest = max(topic.max_length for topic in config.data.topics.values())
    state = load_state(delta)
    controls = {name: u_D for name, u_D in state.items() if name.startswith(CONTROL)}
    victim = Victim(model, inputs.tokenizer, config.model.layer, list(weights), controls, corpora, longest, config.seed)
    found = {}
    for planned in [Planned(UNATTACKED, Untouched(), {}), *_possible(attacks, victim)]:
        for label, group in (("unlearned", ModelGroup(model, [weights])), ("base", ModelGroup(model))):
            say(f"Attack {planned.name}, {label} model")
            stages = Stages.read(_place(folder, config, inputs, victim, planned, label))
            with group.use(0):
                _ask(victim, planned, inputs, config, label, stages)
            found[planned.name, label] = stages.found
    show(folder.path.name, found, inputs.questions.suite.members)
    say(f"Files: {folder.file('attacks')}")


def _possible(attacks: Sequence[Planned], victim: Victim) -> list[Planned]:
    """Those that can be made; the others are named. Raises UserError if none can, or one's texts cannot be read."""
    for planned in attacks:
        planned.attack.uses(victim)
    why_not = {planned.name: planned.attack.why_not(victim) for planned in attacks}
    told = [f"attack={name}: {why}." for name, why in why_not.items() if why is not None]
    if len(told) == len(attacks):
        raise UserError("\n".join(told))
    for line in told:
        say(f"Left out: {line}")
    return [planned for planned in attacks if why_not[planned.name] is None]


class Untouched(Attack):
    """No attack."""

    levels = (0,)

    def stages(self, victim: Victim) -> Generator[float, None, None]:
        """One."""
        yield 0


def _configuration(folder: RunFolder, overrides: list[str]) -> Config:
    """The run's configuration with its own evaluation, or another one, in the kinds of query that are asked here."""
    config = run_config(folder, overrides, own=True)
    queries = [query for query in QUERIES if query in config.eval.queries]
    asked_of = {query: roles for query, roles in config.eval.asked_of.items() if query in queries}
    silent = replace(config.eval.maxlogit, tokens=0)
    config.eval = replace(config.eval, queries=queries, asked_of=asked_of, maxlogit=silent, every=None)
    return config


def _place(folder: RunFolder, config: Config, inputs: Inputs, victim: Victim, planned: Planned, label: str) -> Path:
    """The file of a model's stages, named by all that determines them."""
    key = {
        "attack": planned.config,
        "uses": planned.attack.uses(victim),
        "model": inputs.model_hash,
        "dtype": str(inputs.source.torch_dtype),
        "device": inputs.source.torch_device.type,
        "questions": inputs.questions.suite.sha256(),
        "version": RESULTS_VERSION,
    }
    if label == "base":
        return cache_place(Path(config.output_root) / CACHE, "attacks", key).with_suffix(".json")
    key["delta"] = hashlib.sha256(folder.file("delta.safetensors").read_bytes()).hexdigest()
    return folder.file("attacks") / f"{planned.name}-{json_sha256(key)[:10]}.json"


def _ask(victim: Victim, planned: Planned, inputs: Inputs, config: Config, label: str, stages: Stages) -> None:
    """Ask the model at each stage that is not there yet."""
    if all(f"{level:g}" in stages.found for level in planned.attack.levels):
        return
    with closing(planned.attack.stages(victim)) as levels:
        for level in levels:
            if f"{level:g}" in stages.found:
                continue
            [answers] = evaluate(
                ModelGroup(victim.model),
                inputs.tokenizer,
                inputs.questions.suite,
                label=label,
                tokens_per_batch=config.eval.tokens_per_batch,
            )
            stages.add(level, answers.metrics, {"attack": planned.name, "config": planned.config, "model": label})


def show(title: str, found: Mapping[tuple[str, str], Mapping[str, Metrics]], members: Mapping[str, list[str]]) -> None:
    """A table with a row for each stage and model: accuracies in percent, or nats a token, by role and query."""
    columns = [(role, query) for role in members for query in QUERIES]
    rows = {
        (name, level, label): [_figure(metrics, members, label, column) for column in columns]
        for name in dict.fromkeys(name for name, _ in found)
        for level in found[name, "unlearned"]
        for label in ("unlearned", "base")
        if (metrics := found[name, label].get(level)) is not None
    }
    asked = [i for i in range(len(columns)) if any(cells[i] for cells in rows.values())]
    table = Table(title=f"Attacks, {title}", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("attack", "level", "model"):
        table.add_column(name)
    for i in asked:
        table.add_column(" ".join(columns[i]), justify="right")
    for row, cells in rows.items():
        table.add_row(*row, *(cells[i] for i in asked))
    console.print(table)


def _figure(metrics: Metrics, members: Mapping[str, list[str]], model: str, column: tuple[str, str]) -> str:
    """Accuracy in percent, or nats a token; empty where it was not measured."""
    accuracy = role_means(metrics, members, model, "acc").get(column)
    if accuracy is not None:
        return f"{100 * accuracy:.1f}"
    nats = role_means(metrics, members, model, "nats").get(column)
    return "" if nats is None else f"{nats:.2f}"
