"""Attacking a finished run: its model, and the base model for comparison, measured at each level of each attack.

Results go to RUN/attacks/NAME-HASH.json after each level, those of the base model to the cache that all runs share, and
to the run's file in the end. What is there is not measured again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from unlearn.attacks.attack import Attack, Change, Victim
from unlearn.attacks.make import Planned
from unlearn.attacks.stages import BASE, IGNORANT, Stages
from unlearn.attacks.table import QUERIES, Found, nothing_forgotten, show
from unlearn.config.identity import RESULTS_VERSION
from unlearn.config.schema import Config
from unlearn.data.corpora import Reading
from unlearn.errors import UserError
from unlearn.evaluate.cache import cache_place
from unlearn.evaluate.questions import CACHE
from unlearn.methods.misdirection import CONTROL
from unlearn.models.delta import check_delta, load_delta, load_state
from unlearn.models.fingerprint import checkpoint_fingerprint
from unlearn.models.group import ModelGroup
from unlearn.models.loading import BALANCED, Source, load_config, load_whole
from unlearn.runs.evaluation import run_config
from unlearn.runs.folder import RunFolder
from unlearn.runs.inputs import Inputs, load_evaluation_inputs
from unlearn.screen import say
from unlearn.storage.hashing import json_sha256
from unlearn.storage.lock import FolderLock

QUESTIONS = 300  # of a role: accuracies are good to about 3 points, and there are many levels
UNATTACKED = "none"


class BaseModel:
    """The base model that was loaded last, so that runs that share it load it once. Attacks leave it as it was."""

    def __init__(self) -> None:
        self._source: Source | None = None
        self._model: PreTrainedModel | None = None

    def load(self, source: Source) -> PreTrainedModel:
        """The whole model."""
        if source != self._source:
            self._model = None  # gone before the next one comes
            self._model, self._source = load_whole(source), source
        assert self._model is not None
        return self._model


def attack(
    folders: Sequence[Path],
    attacks: Sequence[Planned],
    overrides: Sequence[str],
    base: BaseModel | None = None,
    ignorant: str | None = None,
    required: bool = True,
) -> None:
    """Attack finished runs, show a table of each.

    `ignorant` is a checkpoint of a model like the base model that never knew what was to be forgotten: it learns the
    same texts for comparison. Attacks that a run does not allow are left out, which is said; if these are all, this is
    an error where attacks are `required`.

    Raises UserError for a folder that holds no finished run, and for an ignorant model of another shape.
    """
    base = base or BaseModel()
    for path in folders:
        folder = RunFolder(path)
        if not folder.done:
            raise UserError(f"{path}: there is no finished run here (no run.json with the status done).")
        with FolderLock(folder.path):
            _attack(folder, attacks, list(overrides), base, ignorant, required)


def _attack(
    folder: RunFolder,
    attacks: Sequence[Planned],
    overrides: list[str],
    base: BaseModel,
    ignorant: str | None,
    required: bool,
) -> None:
    config = _configuration(folder, overrides)
    if config.model.device == BALANCED:
        told = f"{folder.path}: model.device={BALANCED}: attacks change weights, on one device only."
        raise UserError(f"{told} Add e.g. model.device=auto.")
    inputs = load_evaluation_inputs(config)
    if ignorant is not None:
        _source_of(ignorant, inputs)
    victim, group = _victim(folder, config, inputs, base.load(inputs.source))
    common = _common(folder, inputs)
    possible = _possible(attacks, victim, required)
    if not possible:
        return
    found: list[Found] = []
    for planned in [Planned(UNATTACKED, Untouched(), {}), *possible]:
        own, of_base = _stages(folder, common, victim, planned)
        with group.use(0):
            _measure(replace(victim, base=lambda: group.use(1)), planned.attack, own)
        _measure(replace(victim, label=BASE), planned.attack, of_base)
        own.others[BASE] = of_base.found
        own.write()
        found.append((planned, own))
        if planned.name == UNATTACKED and nothing_forgotten(own):
            say("Nothing was forgotten, as far as the evaluation can tell, so nothing can come back.")
    if ignorant is not None:
        _measure_ignorant(ignorant, victim, inputs, common, found)
    show(folder.path.name, found)
    say(f"Files: {folder.file('attacks')}")


def _source_of(ignorant: str, inputs: Inputs) -> Source:
    """Where the model is that never knew. Raises UserError unless it has the base model's shape."""
    source = replace(inputs.source, path=ignorant, revision=None, gguf_file=None)
    try:
        own, base = (load_config(s).get_text_config() for s in (source, inputs.source))
    except UserError as error:  # it speaks of model.path
        raise UserError(f"--ignorant {ignorant}: {error}") from None
    for name in ("num_hidden_layers", "hidden_size", "vocab_size"):
        if getattr(own, name) != getattr(base, name):
            told = f"its {name} is {getattr(own, name)}, the base model's {getattr(base, name)}"
            raise UserError(f"--ignorant {ignorant}: {told}. It has to be a model of the same shape.")
    return source


def _measure_ignorant(path: str, victim: Victim, inputs: Inputs, common: Mapping[str, Any], found: list[Found]) -> None:
    """Measure a model that never knew, beside the other two, under attacks that teach it."""
    source = _source_of(path, inputs)
    other = replace(victim, model=load_whole(source), label=IGNORANT)
    common = {**common, "model": checkpoint_fingerprint(source)}
    for planned, own in found:
        if planned.attack.beside_ignorant:
            stages = _shared(common, other, planned, IGNORANT)
            _measure(other, planned.attack, stages)
            own.others[IGNORANT] = stages.found
            own.write()


def _victim(folder: RunFolder, config: Config, inputs: Inputs, model: PreTrainedModel) -> tuple[Victim, ModelGroup]:
    """The base model as a victim, and a group of the unlearned model (0) and the base model (1)."""
    delta = folder.file("delta.safetensors")
    topics = {name: config.data.topics[name] for name in config.data.use or config.data.topics}
    weights, metadata = load_delta(delta)
    check_delta(model, weights, metadata)
    group = ModelGroup(model, [weights, {name: model.get_parameter(name).data for name in weights}])
    victim = Victim(
        model,
        inputs.tokenizer,
        config.model.layer,
        trained=list(weights),
        controls={name: u_D for name, u_D in load_state(delta).items() if name.startswith(CONTROL)},
        corpora={name: {"forget": t.forget, "retain": t.retain} for name, t in topics.items()},
        reading=Reading.of(config.data, inputs.tokenizer),
        max_length=max(topic.max_length for topic in topics.values()),
        seed=config.seed,
        suite=inputs.questions.suite,
        config=config,
        tokens_per_batch=config.eval.tokens_per_batch,
        base=nullcontext,
    )
    return victim, group


def _possible(attacks: Sequence[Planned], victim: Victim, required: bool = True) -> list[Planned]:
    """Those that can be made; the others are named.

    Raises UserError if none can and one is required, or if one's texts cannot be read.
    """
    why_not = {planned.name: planned.attack.why_not(victim) for planned in attacks}
    told = [f"attack={name}: {why}." for name, why in why_not.items() if why is not None]
    if required and len(told) == len(attacks):
        raise UserError("\n".join(told))
    for line in told:
        say(f"Left out: {line}")
    possible = [planned for planned in attacks if why_not[planned.name] is None]
    for planned in possible:
        planned.attack.levels_of(victim)
    return possible


class Untouched(Change):
    """No attack."""

    levels = (0,)
    level = "not attacked"
    beside_ignorant = True

    def stages(self, victim: Victim) -> Generator[float, None, None]:
        """One."""
        yield 0


def _configuration(folder: RunFolder, overrides: list[str]) -> Config:
    """The run's configuration with its own evaluation, or another one, in the kinds of query that are asked here.

    Of each role at most QUESTIONS are asked, unless eval.subset or eval.limit says otherwise.
    """
    config = run_config(folder, overrides)
    if config.eval.subset is None and config.eval.limit is None and not any("eval.subset" in o for o in overrides):
        config.eval.subset = QUESTIONS
    queries = [query for query in QUERIES if query in config.eval.queries]
    asked_of = {query: roles for query, roles in config.eval.asked_of.items() if query in queries}
    silent = replace(config.eval.maxlogit, tokens=0)
    config.eval = replace(config.eval, queries=queries, asked_of=asked_of, maxlogit=silent, every=None)
    return config


def _common(folder: RunFolder, inputs: Inputs) -> dict[str, Any]:
    """What determines the figures of all attacks on a run, its delta included."""
    return {
        "model": inputs.model_hash,
        "dtype": str(inputs.source.torch_dtype),
        "device": inputs.source.torch_device.type,
        "tokenizer": inputs.hashes["tokenizer"],
        "questions": json_sha256(inputs.hashes["questions"]),
        "version": RESULTS_VERSION,
        "delta": hashlib.sha256(folder.file("delta.safetensors").read_bytes()).hexdigest(),
    }


def _stages(folder: RunFolder, common: Mapping[str, Any], victim: Victim, planned: Planned) -> tuple[Stages, Stages]:
    """What is known of the unlearned and the base model, in files that are named by all that determines them."""
    own = {"attack": planned.config, "uses": planned.attack.uses(victim), **common}
    file = folder.file("attacks") / f"{planned.name}-{json_sha256(own)[:10]}.json"
    return Stages.read(file, _about(common, victim, planned, "unlearned")), _shared(common, victim, planned, BASE)


def _shared(common: Mapping[str, Any], victim: Victim, planned: Planned, label: str) -> Stages:
    """What is known of a model that runs share, in the cache."""
    key = {"attack": planned.config, "uses": planned.attack.uses(victim), **common}
    key.pop("delta")
    file = cache_place(Path(victim.config.output_root) / CACHE, "attacks", key).with_suffix(".json")
    return Stages.read(file, _about(common, victim, planned, label))


def _about(common: Mapping[str, Any], victim: Victim, planned: Planned, label: str) -> dict[str, Any]:
    return {
        "attack": planned.name,
        "config": planned.config,
        "questions": common["questions"],
        "levels": {f"{level:g}": planned.attack.told(level) for level in planned.attack.levels_of(victim)},
        "roles": planned.attack.members(victim),
        "model": label,
    }


def _measure(victim: Victim, attack: Attack, stages: Stages) -> None:
    """Measure the model at each level that is not there yet."""
    missing: Collection[float] = [x for x in attack.levels_of(victim) if f"{x:g}" not in stages.found]
    if missing:
        with closing(attack.measure(victim, missing)) as measured:
            for level, metrics in measured:
                stages.add(level, metrics)
