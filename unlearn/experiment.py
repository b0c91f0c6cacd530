"""The whole run on one page: inputs -> model -> variants -> train -> save -> evaluate -> track.

`run` takes one configuration; `run_together` a list of them that share model and data, and a run is a list of one.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from unlearn.config.compose import override
from unlearn.config.identity import identity, run_folder
from unlearn.config.schema import Config, unshared
from unlearn.errors import UserError, describe
from unlearn.methods.make import make_method
from unlearn.methods.noise import Ahead
from unlearn.methods.rna import RNA
from unlearn.models.cutting import CutModel
from unlearn.models.loading import load_up_to, load_whole
from unlearn.records.answers import Answers
from unlearn.records.scores import SCORES, check_finite, read_scores
from unlearn.runs.active import ActiveRun, open_run
from unlearn.runs.folder import RunFolder
from unlearn.runs.inputs import Inputs, hashes_of_run, load_inputs, make_evaluator
from unlearn.runs.memory import check_training_memory, must_recompute
from unlearn.screen import say
from unlearn.storage.files import check_space, check_writable
from unlearn.tracking.terminal import ShowResult, show_result, show_result_line, training_progress
from unlearn.training.loop import Record, Schedule, train_variants
from unlearn.training.optimizer import Optimizer
from unlearn.training.train import Setting, begin, is_padded_left, stream
from unlearn.training.variant import Listener, Variant

CHECKPOINT = 3  # matrices for each trained one: itself and two moments
TOKENS_OF_REACH = 64


@dataclass(frozen=True)
class Outcome:
    """The folder of a configuration's run, and why the run failed if it did."""

    folder: Path
    error: Exception | None


def run(config: Config, hydra_folder: Path | None = None) -> Path:
    """Train, save and evaluate a configuration, unless its folder holds it finished; returns the folder.

    Raises what went wrong: a UserError for whatever is wrong with the files that the configuration names, before any
    weight is loaded, for a loss that is not finite, and for answers that are not: then the run is done nevertheless.
    """
    [outcome] = run_together([config], [hydra_folder], show_result)
    if outcome.error is not None:
        raise outcome.error
    return outcome.folder


def run_together(
    configs: list[Config], hydra_folders: Sequence[Path | None] = (), show: ShowResult = show_result_line
) -> list[Outcome]:
    """Run configurations that share model, data, evaluation and steps in one process, each as if it ran alone.

    `show` prints the scores of each run when it is done.

    Raises UserError for what is wrong with all of them: they do not share what they have to, or name bad files. What
    goes wrong with one is in its own outcome and its own run.json.
    """
    shared = _shared(configs)
    check_writable(run_folder(shared).parent)
    inputs = load_inputs(shared)
    _check_folders(configs)
    errors: dict[Path, Exception | None] = {}
    with ExitStack() as stack:
        runs = []
        for config, hydra_folder in zip_longest(configs, hydra_folders):
            path = run_folder(config)
            if path in errors:
                continue  # the same configuration once more
            errors[path] = None
            try:
                active = stack.enter_context(open_run(config, hashes_of_run(config, inputs), hydra_folder))
                if active is None:
                    say(f"{path} holds this run, finished: nothing to do (train.force=true repeats it).")
                    check_finite(read_scores(path) if (path / SCORES).is_file() else ())
                else:
                    runs.append(active)
            except Exception as error:
                errors[path] = error
        if runs:
            _train(runs, shared, inputs)
            _clear_tracebacks(runs)
            _evaluate(runs, shared, inputs, show)
            _clear_tracebacks(runs)
    errors |= {active.folder.path: active.error for active in runs}
    _attack(configs, errors)
    return [Outcome(run_folder(config), errors[run_folder(config)]) for config in configs]


def _clear_tracebacks(runs: list[ActiveRun]) -> None:
    """Release the models that tracebacks of failed runs would keep in memory."""
    for active in runs:
        if active.error is not None:
            traceback.clear_frames(active.error.__traceback__)


def _check_folders(configs: list[Config]) -> None:
    """Raise UserError if two different runs want one folder, so that one of them could not be made."""
    identities: dict[Path, dict[str, Any]] = {}
    for config in configs:
        if identities.setdefault(run_folder(config), identity(config)) != identity(config):
            raise UserError(f"output_dir={config.output_dir} is used by two runs: do not set it in a sweep.")


def _shared(configs: list[Config]) -> Config:
    """The configuration whose model, data, evaluation and steps all share. Raises UserError where they differ."""
    first, *others = configs
    differing = [key for other in others for key in unshared(first, other)]
    if differing:
        raise UserError(f"{differing[0]} differs between runs that are to share one process.")
    return first


def _train(runs: list[ActiveRun], shared: Config, inputs: Inputs) -> None:
    """Algorithm 1 for all runs at once, then their deltas; the model is gone afterwards.

    Runs that are trained already are left out. Those with a checkpoint resume. One that the memory cannot hold alone
    fails, before any weight is loaded.
    """
    runs = [active for active in runs if active.folder.trained is None]
    for active in runs:
        with active.catching_errors():
            check_training_memory(active.config, inputs.source, inputs.lengths)
    runs = [active for active in runs if active.error is None]
    if not runs:
        return
    settings = [_setting(active.config) for active in runs]
    cut = _load_cut(shared, inputs, whole=any(setting.method.needs_logits for setting in settings))
    check_space(run_folder(shared).parent, _bytes_of_files(shared, cut, len(runs)))
    _say_what_is_trained(cut, settings)
    if not all(setting.method.needs_logits for setting in settings):
        _say_what_is_reached(cut, inputs)
    topics, ahead = [topic.name for topic in inputs.topics], Ahead(cut.dim, cut.device)
    trained: list[tuple[ActiveRun, Variant]] = []
    for active, setting in zip(runs, settings, strict=True):
        with active.catching_errors():
            variant = begin(cut, setting, topics, steps=shared.train.steps, mask=shared.loss.mask, ahead=ahead)
            active.restore(variant)
            trained.append((active, variant))
    if trained:
        _train_variants(trained, shared, inputs, cut)
    for active, variant in trained:
        if active.error is None:
            with active.catching_errors():
                active.finish_training(variant, cut.frozen)


def _setting(config: Config) -> Setting:
    """What distinguishes a run from others of the same training."""
    t = config.train
    optimizer = Optimizer(t.optimizer, t.schedule, (t.betas[0], t.betas[1]), t.eps, t.weight_decay, t.precision)
    method = make_method(config.method, RNA(**asdict(config.rna)))
    return Setting(method, t.lr, config.loss.alpha, config.seed, optimizer)


def _load_cut(shared: Config, inputs: Inputs, *, whole: bool) -> CutModel:
    layer = shared.model.layer
    model = load_whole(inputs.source) if whole else load_up_to(inputs.source, layer)
    return CutModel(model, layer, parameters=shared.model.parameters)


def _say_what_is_trained(cut: CutModel, settings: list[Setting]) -> None:
    say(f"Trained parameters: {', '.join(cut.frozen)}")
    plain = sum(setting.method.rna.nu == 0 for setting in settings)
    if plain:
        say("Without RNA (rna.nu=0)" + (f": {plain} of {len(settings)} runs" if len(settings) > 1 else ""))


def _say_what_is_reached(cut: CutModel, inputs: Inputs) -> None:
    ids = inputs.topics[0].forget[0][:TOKENS_OF_REACH]
    reach = cut.reach(torch.tensor([ids], device=cut.device))
    if reach is not None:
        say(
            f"A norm follows the trained matrices: at layer {cut.layer} they move a state by {reach:.3g} at most. "
            "A target that is much farther away cannot be reached (`unlearn scale` shows this for each layer)."
        )


def _bytes_of_files(shared: Config, cut: CutModel, runs: int) -> int:
    """What deltas, checkpoints and weights along the course take at most, in float32; samples and logs are small."""

    def before_the_last_step(every: int | None) -> int:
        return (shared.train.steps - 1) // every if every else 0

    along = before_the_last_step(shared.eval.every)
    checkpoint = CHECKPOINT if before_the_last_step(shared.train.checkpoint_every) else 0
    # A run's next checkpoint is written before its last one is removed, of one run at a time.
    matrices = runs * (1 + along + checkpoint) + checkpoint
    return 4 * matrices * sum(weight.numel() for weight in cut.frozen.values())


class _RunListener(Listener):
    """The log, checkpoints and kept weights of a run. If one of them fails, the run fails and its variant stops."""

    def __init__(self, active: ActiveRun, cut: CutModel, show: Callable[[Record], None]) -> None:
        self._active, self._cut, self._show = active, cut, show

    @contextmanager
    def _stopping(self, variant: Variant) -> Iterator[None]:
        with self._active.catching_errors():
            yield
        if self._active.error is not None:
            variant.error = describe(self._active.error)

    def on_record(self, variant: Variant, record: Record) -> None:
        with self._stopping(variant):
            self._active.log(record)
        self._show(record)

    def on_checkpoint(self, variant: Variant) -> None:
        with self._stopping(variant):
            self._active.save(variant)

    def on_keep(self, variant: Variant) -> None:
        with self._stopping(variant):
            self._active.keep_weights(variant, self._cut.frozen)


def _train_variants(pairs: list[tuple[ActiveRun, Variant]], shared: Config, inputs: Inputs, cut: CutModel) -> None:
    if is_padded_left(shared.loss.mask) and shared.model.attn_implementation != "eager":
        say("loss.mask=none counts padding, whose states depend on the kernel: model.attn_implementation=eager.")
    variants = [variant for _, variant in pairs]
    made = sum(variant.nbytes for variant in variants)
    with training_progress(shared.train.steps) as show:
        for active, variant in pairs:
            variant.listener = _RunListener(active, cut, show)
        train_variants(
            cut,
            variants,
            stream(
                inputs.topics,
                steps=shared.train.steps,
                batch_size=shared.train.batch_size,
                mask=shared.loss.mask,
                pad_id=inputs.pad_id,
                start=min(variant.progress.steps for variant in variants),
                preferred=inputs.preferred.rows if inputs.preferred else None,
            ),
            mask_padding=is_padded_left(shared.loss.mask),
            schedule=Schedule(shared.train.log_every, shared.train.checkpoint_every, shared.eval.every),
            recompute=must_recompute([active.config for active, _ in pairs], cut.model, inputs.lengths, made),
        )


def _attack(configs: list[Config], errors: dict[Path, Exception | None]) -> None:
    """The attacks that these configurations ask for, on finished runs; what goes wrong is put into `errors`."""
    attacked: dict[Path, list[str]] = {}
    for config in configs:  # several can be one run, which differ in their attacks alone
        if config.attacks:
            attacked.setdefault(run_folder(config), []).extend(config.attacks)
    if not attacked:
        return
    from unlearn.attacks.make import plan  # imports scikit-learn and peft, which takes seconds
    from unlearn.attacks.run import BaseModel, attack

    base = BaseModel()
    for path, names in attacked.items():
        if errors[path] is None:
            try:
                attack([path], plan(names, []), _of_this_command(configs[0]), base, required=False)
                folder = RunFolder(path)
                with folder.locked():
                    folder.add_attacks(names)
            except Exception as error:
                errors[path] = error


def _of_this_command(config: Config) -> list[str]:
    """What a run's folder does not say for itself: whose code may run, and where shared answers are kept."""
    return [
        f"model.trust_remote_code={str(config.model.trust_remote_code).lower()}",
        override("eval.include_path", config.eval.include_path),
        override("output_root", config.output_root),
    ]


def _evaluate(runs: list[ActiveRun], shared: Config, inputs: Inputs, show: ShowResult) -> None:
    """The runs' models together, and the base model once for all; scores and samples are written and shown."""
    runs = [active for active in runs if active.error is None]
    results: dict[Path, Answers] = {}
    if inputs.questions is not None and runs:
        from unlearn.runs.results import measure_course, results_of  # imports lm-eval, which takes long

        evaluator = make_evaluator(shared, inputs)
        if inputs.questions.course is not None:
            measure_course(runs, shared, evaluator.asking(inputs.questions.course))
            runs = [active for active in runs if active.error is None]
        results = results_of(runs, evaluator) if runs else {}
    for active in runs:
        if active.error is None:
            with active.catching_errors():
                answers = results.get(active.folder.path, Answers([], []))
                active.finish(answers, inputs.questions.ngrams if inputs.questions else {})
                show(answers.scores, active.folder.path, active.tracker.address)
