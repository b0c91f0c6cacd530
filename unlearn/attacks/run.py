"""Attacks on a finished run: its unlearned model, and the base model for comparison, measured at each level.

Results are written to RUN/attacks after each level. Those of models that runs share are in the cache, too. What has
been measured is not measured again.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from unlearn.attacks.attack import Change, Target, Unlearning
from unlearn.attacks.make import Planned
from unlearn.attacks.progress import Progress
from unlearn.attacks.results import AttackResults
from unlearn.attacks.table import QUERIES, nothing_forgotten, problem, show
from unlearn.config.identity import RESULTS_VERSION
from unlearn.config.schema import Config
from unlearn.data.corpora import Reading
from unlearn.errors import UserError
from unlearn.evaluation.cache import cache_place
from unlearn.evaluation.questions import CACHE
from unlearn.methods.misdirection_loss import CONTROL
from unlearn.models.delta import check_delta, load_delta, load_state
from unlearn.models.fingerprint import checkpoint_fingerprint, states_key
from unlearn.models.group import ModelGroup
from unlearn.models.loading import BALANCED, Source, load_config, load_whole
from unlearn.records.attacks import ATTACKS, BASE, NOT_ATTACKED, RETRAINED, UNLEARNED, AttackAbout, variant_names
from unlearn.runs.evaluation import run_config
from unlearn.runs.folder import RunFolder
from unlearn.runs.inputs import Inputs, load_evaluation_inputs
from unlearn.screen import say
from unlearn.storage.files import check_writable
from unlearn.storage.hashing import file_sha256, json_sha256
from unlearn.storage.hold import Hold

LENGTH = 512  # tokens of a text, for a run of which no corpus is known
QUESTIONS = 300  # of a role: accuracies are good to about 3 points, and there are many levels


class BaseModel:
    """The base model that was loaded last, so that runs that share it load it once. Attacks leave it as it was."""

    def __init__(self) -> None:
        self._source: Source | None = None
        self._model: PreTrainedModel | None = None

    def load(self, source: Source) -> PreTrainedModel:
        """The whole model."""
        if source != self._source:
            self._model = None  # freed before the next one is loaded
            self._model, self._source = load_whole(source), source
        assert self._model is not None
        return self._model


class NoAttack(Change):
    """The model as it is."""

    levels = (0,)
    level = "not attacked"

    def stages(self, target: Target) -> Generator[float, None, None]:
        """The model as it is."""
        yield 0


def attack(
    folders: Sequence[Path],
    attacks: Sequence[Planned],
    overrides: Sequence[str],
    base: BaseModel | None = None,
    retrained: str | None = None,
    required: bool = True,
    allow_code: bool = False,
) -> None:
    """Attack finished runs, and show a table for each.

    Args:
        overrides: of the evaluation, and where the base model is (as in `unlearn evaluate`).
        base: keeps the base model between calls.
        retrained: a checkpoint of a model like the base model that was trained without what was to be forgotten. It is
            attacked, too, for comparison.
        required: whether it is an error if a run allows none of the attacks. Attacks that a run does not allow are left
            out with a message.
        allow_code: whether code that a run's record names may run.

    Raises UserError for a folder that holds no finished run, for a retrained model of another shape and, after all
    runs were attacked, for answers that are not finite.
    """
    base = base or BaseModel()
    runs = [RunFolder(path) for path in folders]
    for folder in runs:
        folder.check_done()
    problems = []
    for folder in runs:
        with folder.locked():
            folder.check_done()  # another process may have begun it anew
            config = _configuration(folder, list(overrides), allow_code)
            results = _attack(folder, config, attacks, base, retrained, required)
        if (sentence := problem(results)) is not None:
            problems.append(f"{folder.path}: {sentence}")
    if problems:
        raise UserError("\n".join(problems))


@dataclass(frozen=True)
class Measurement:
    """An attack on one model: its target, where its results are kept, and a context that puts the model in place."""

    name: str  # of the attack, and of what tells it from others of its name
    planned: Planned
    target: Target
    results: AttackResults
    model: AbstractContextManager[None]
    lock: Hold  # of the run

    @property
    def missing(self) -> list[float]:
        """The levels that have not been measured, in order."""
        measured = self.results.levels(self.target.label)
        return [level for level in self.planned.attack.levels_of(self.target) if level not in measured]

    def make(self, progress: Progress) -> None:
        """Measure the missing levels, and keep each."""
        missing = self.missing
        if not missing:
            return
        attack = self.planned.attack
        levels = list(attack.levels_of(self.target))
        named = f"{self.name}, {self.target.label} model"
        with self.model, closing(attack.measure(self.target, missing)) as measured:
            for level in missing:
                if not attack.at_once:
                    number = levels.index(level) + 1
                    progress.announce(f"{named}: level {number} of {len(levels)}, {attack.level_name(level)}")
                elif level == missing[0]:
                    progress.announce(f"{named}: {len(missing)} of {len(levels)} levels at once")
                _, scores = next(measured)
                self.lock.check()
                self.results.add(level, attack.level_name(level), scores)
                progress.made += 1


def _attack(
    folder: RunFolder,
    config: Config,
    attacks: Sequence[Planned],
    base: BaseModel,
    retrained: str | None,
    required: bool,
) -> list[AttackResults]:
    """Attack a run. Returns the results, first those without an attack."""
    if config.model.device == BALANCED:
        raise UserError(
            f"{folder.path}: model.device={BALANCED}: attacks change weights, on one device only. "
            "Add e.g. model.device=auto."
        )
    check_writable(folder.file(ATTACKS), "The results go there.")
    inputs = load_evaluation_inputs(config)
    other_source = None if retrained is None else _retrained_source(retrained, inputs)
    target, group = _target(folder, config, inputs, base.load(inputs.source))
    possible = _possible(attacks, target, required)
    if not possible:
        return []
    places, lock = _Places(folder, config, inputs), folder.lock
    other = None if other_source is None else replace(target, model=load_whole(other_source), label=RETRAINED)
    measurements = []
    made = [Planned(NOT_ATTACKED, NoAttack(), {}), *possible]
    for name, planned in zip(variant_names([(p.name, p.arguments) for p in made]), made, strict=True):
        measurements.append(Measurement(name, planned, target, places.of_run(planned, target), group.use(0), lock))
        of_base = replace(target, label=BASE)
        measurements.append(Measurement(name, planned, of_base, places.shared(planned, of_base), nullcontext(), lock))
        if other is not None and other_source is not None:
            results = places.shared(planned, other, checkpoint_fingerprint(other_source))
            measurements.append(Measurement(name, planned, other, results, nullcontext(), lock))
    _announce(folder, measurements)
    progress = Progress(sum(len(m.missing) for m in measurements))
    results_of_run: dict[str, AttackResults] = {}
    for measurement in measurements:
        measurement.make(progress)
        name, label = measurement.name, measurement.target.label
        if label == UNLEARNED:
            results_of_run[name] = measurement.results
        else:
            results_of_run[name].take_over(measurement.results, label)
        if name == NOT_ATTACKED and label == BASE and nothing_forgotten(results_of_run[name]):
            say("Nothing was forgotten, as far as the evaluation can tell, so nothing can come back.")
    show(folder.path.name, list(results_of_run.values()))
    say(f"Files: {folder.file(ATTACKS)}")
    return list(results_of_run.values())


def _announce(folder: RunFolder, measurements: Sequence[Measurement]) -> None:
    """What there is to do."""
    attacks = [m for m in measurements if m.target.label == UNLEARNED and m.planned.name != NOT_ATTACKED]
    levels = sum(len(m.planned.attack.levels_of(m.target)) for m in attacks)
    labels = list(dict.fromkeys(m.target.label for m in measurements))
    total = sum(len(m.planned.attack.levels_of(m.target)) for m in measurements)
    missing = sum(len(m.missing) for m in measurements)
    reused = f" {total - missing} of them have been made before." if missing < total else ""
    say(
        f"{folder.path.name}: {len(attacks)} attacks, {levels} levels. With the models as they are: {total} "
        f"measurements of the {', '.join(labels)} models.{reused}"
    )


def _retrained_source(path: str, inputs: Inputs) -> Source:
    """Where the retrained model is. Raises UserError unless it has the base model's shape."""
    source = replace(inputs.source, path=path, revision=None, gguf_file=None)
    try:
        own, base = (load_config(s).get_text_config() for s in (source, inputs.source))
    except UserError as error:  # it names model.path
        raise UserError(f"--retrained {path}: {error}") from None
    for name in ("num_hidden_layers", "hidden_size", "vocab_size"):
        if getattr(own, name) != getattr(base, name):
            raise UserError(
                f"--retrained {path}: its {name} is {getattr(own, name)}, the base model's {getattr(base, name)}. "
                "It has to be a model of the same shape."
            )
    return source


def _target(folder: RunFolder, config: Config, inputs: Inputs, model: PreTrainedModel) -> tuple[Target, ModelGroup]:
    """The target model, and a group whose member 0 is the unlearned model."""
    delta = folder.file("delta.safetensors")
    topics = {name: config.data.topics[name] for name in config.data.use or config.data.topics}
    weights, metadata = load_delta(delta)
    check_delta(model, weights, metadata)
    unlearning = Unlearning(
        layer=config.model.layer,
        trained=list(weights),
        controls={name: u_D for name, u_D in load_state(delta).items() if name.startswith(CONTROL)},
        corpora={name: {"forget": t.forget, "retain": t.retain} for name, t in topics.items()},
        reading=Reading.of(config.data, inputs.tokenizer),
        max_length=max((topic.max_length for topic in topics.values()), default=LENGTH),
        seed=config.seed,
    )
    target = Target(
        model,
        inputs.tokenizer,
        unlearning,
        inputs.asked.suite,
        label=UNLEARNED,
        tokens_per_batch=config.eval.tokens_per_batch,
    )
    return target, ModelGroup(model, [weights])


def _possible(attacks: Sequence[Planned], target: Target, required: bool = True) -> list[Planned]:
    """The attacks that can be made on this model. The others are named, with the reason.

    Raises UserError if there is none and one is required, or if an attack's texts cannot be read.
    """
    obstacles = [planned.attack.obstacle(target) for planned in attacks]
    possible = [planned for planned, obstacle in zip(attacks, obstacles, strict=True) if obstacle is None]
    left_out = ((planned.name, why) for planned, why in zip(attacks, obstacles, strict=True) if why is not None)
    messages = list(dict.fromkeys(f"attack={name}: {why}." for name, why in left_out))
    if required and not possible:
        raise UserError("\n".join(messages))
    for message in messages:
        say(f"Left out: {message}")
    for planned in possible:
        planned.attack.levels_of(target)
        remark = planned.attack.remark(target)
        if remark is not None:
            say(f"attack={planned.name}: {remark}.")
    return possible


def _configuration(folder: RunFolder, overrides: list[str], allow_code: bool) -> Config:
    """The run's configuration with its own evaluation, or another one, in the kinds of query that attacks use.

    Of each role at most QUESTIONS are asked, unless eval.subset or eval.limit says otherwise.
    """
    config = run_config(folder, overrides, allow_code=allow_code)
    if config.eval.subset is None and config.eval.limit is None and not any("eval.subset" in o for o in overrides):
        config.eval.subset = QUESTIONS
    queries = [query for query in QUERIES if query in config.eval.queries]
    asked_of = {query: roles for query, roles in config.eval.asked_of.items() if query in queries}
    without = replace(config.eval.maxlogit, tokens=0)
    config.eval = replace(config.eval, queries=queries, asked_of=asked_of, maxlogit=without, every=None)
    return config


class _Places:
    """Where results are kept: in folders that are named by all that determines them."""

    def __init__(self, folder: RunFolder, config: Config, inputs: Inputs) -> None:
        self._folder, self._lock = folder.file(ATTACKS), folder.lock
        self._cache = Path(config.output_root) / CACHE
        self._delta = file_sha256(folder.file("delta.safetensors"))
        self._common = {
            **states_key(inputs.source, inputs.model_hash, inputs.tokenizer),
            "questions": json_sha256(inputs.hashes["questions"]),
            "tokens_per_batch": config.eval.tokens_per_batch,
            "lm_eval": version("lm_eval"),
            "halves": True,  # are among the scores
            "version": RESULTS_VERSION,
        }

    def of_run(self, planned: Planned, target: Target) -> AttackResults:
        """The unlearned model's results."""
        key = {**self._key(planned, target), "delta": self._delta}
        folder = self._folder / f"{planned.name}-{json_sha256(key)[:10]}"
        return AttackResults.load(folder, self._about(planned, target), self._lock)

    def shared(self, planned: Planned, target: Target, model_hash: str | None = None) -> AttackResults:
        """The results of a model that runs share: the base model, or the one with this hash."""
        key = self._key(planned, target)
        if model_hash is not None:
            key["model"] = model_hash
        return AttackResults.load(cache_place(self._cache, "attacks", key), self._about(planned, target))

    def _key(self, planned: Planned, target: Target) -> dict[str, Any]:
        attack = planned.attack
        arguments = {key: value for key, value in planned.arguments.items() if key != "bound"}  # it only chooses
        kind = {"class": type(attack).__name__, "arguments": arguments, "depends_on": attack.depends_on(target)}
        return {**kind, **self._common}

    def _about(self, planned: Planned, target: Target) -> AttackAbout:
        return AttackAbout(
            planned.name, self._common["questions"], dict(planned.arguments), remark=planned.attack.remark(target)
        )
