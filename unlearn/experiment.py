"""The whole run on one page: model -> data -> variants -> train -> save -> evaluate -> track.

`run` takes one configuration; `run_together` a list of them that share model and data, and a run is a list of one.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from hydra.utils import instantiate

from unlearn.config.identity import run_folder, run_name
from unlearn.config.schema import SPAN, Config, unshared
from unlearn.data.batches import batches, documents_needed
from unlearn.data.corpora import Topic, load_topic
from unlearn.errors import UserError, describe
from unlearn.evaluate.examiner import Examiner
from unlearn.methods import rna
from unlearn.methods.misdirection import Misdirection
from unlearn.methods.randomness import generator
from unlearn.models.cutting import CutModel
from unlearn.models.delta import save_delta
from unlearn.models.fingerprint import checkpoint_fingerprint
from unlearn.models.loading import Source, check_weights, load_config, load_tokenizer, load_up_to
from unlearn.models.memory import reuse_memory
from unlearn.runs.point import Point, opened
from unlearn.screen import say
from unlearn.tracking.terminal import show_result, training_progress
from unlearn.training.loop import Record, train
from unlearn.training.optimizer import schedule
from unlearn.training.variant import Variant, make_variant


@dataclass(frozen=True)
class Outcome:
    """Where a configuration's run is, and why it failed if it did."""

    folder: Path
    error: Exception | None


def run(config: Config, hydra_folder: Path | None = None) -> Path:
    """Train, save and evaluate a configuration, unless its folder holds it finished; returns the folder.

    Raises what went wrong: a UserError for whatever is wrong with the files that the configuration names, before any
    weight is loaded, and for a loss that is not finite.
    """
    [outcome] = run_together([config], [hydra_folder])
    if outcome.error is not None:
        raise outcome.error
    return outcome.folder


def run_together(configs: list[Config], hydra_folders: Sequence[Path | None] = ()) -> list[Outcome]:
    """Run configurations that share model, data and schedule in one process, each as if it ran alone.

    Raises UserError for what is wrong with all of them: they do not share what they have to, or name bad files. What
    goes wrong with one is in its own outcome and its own run.json.
    """
    reuse_memory()
    shared = _shared(configs)
    source = Source.of(shared.model)
    tokenizer = load_tokenizer(source)
    _check_layers(shared, load_config(source).get_text_config().num_hidden_layers)
    topics = load_topics(shared, tokenizer)
    check_weights(source, shared.model.layer if not shared.eval.tasks else None)
    examiner = Examiner(shared, source, tokenizer)
    inputs = {
        "model": checkpoint_fingerprint(source),
        "data": {topic.name: topic.sha256 for topic in topics},
        "query_words": examiner.word_hashes,
    }
    errors: dict[Path, Exception | None] = {}
    with ExitStack() as stack:
        points = []
        for config, hydra_folder in zip_longest(configs, hydra_folders):
            path = run_folder(config)
            if path in errors:
                continue  # given twice
            errors[path] = None
            try:
                point = stack.enter_context(opened(config, inputs, hydra_folder))
                if point is None:
                    say(f"{path} holds this run, finished: nothing to do (train.force=true repeats it).")
                else:
                    points.append(point)
            except Exception as error:
                errors[path] = error
        if points:
            _train_points(points, shared, source, topics, _pad_id(tokenizer))
            for point in points:
                if point.error is not None:  # its traceback would keep the model in memory
                    traceback.clear_frames(point.error.__traceback__)
            _evaluate_points(points, shared, examiner)
    errors |= {point.folder.path: point.error for point in points}
    return [Outcome(run_folder(config), errors[run_folder(config)]) for config in configs]


def _shared(configs: list[Config]) -> Config:
    """The configuration whose model, data and schedule all share. Raises UserError where they differ."""
    first = configs[0]
    for key in (key for other in configs[1:] for key in unshared(first, other)):
        raise UserError(f"{key} differs between runs that are to share one process.")
    return first


def _check_layers(config: Config, layers: int) -> None:
    if layers != config.model.num_layers:
        raise UserError(
            f"model.num_layers={config.model.num_layers}, but the model at {config.model.path} has {layers} layers: "
            f"set model.num_layers={layers} and choose model.layer and the coefficients for that model."
        )


def _pad_id(tokenizer: Any) -> int:
    """Any token serves where there is no padding token: what pads is behind all real tokens, or masked."""
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(i for i in ids if i is not None)


def load_topics(config: Config, tokenizer: Any) -> list[Topic]:
    """The corpora that training needs, tokenised."""
    data = config.data
    names = data.use or list(data.topics)
    documents = documents_needed(config.train.steps, config.train.batch_size, len(names))
    return [
        load_topic(
            name,
            data.topics[name].forget,
            data.topics[name].retain,
            tokenizer,
            max_length=data.topics[name].max_length,
            retain_max_length=data.topics[name].retain_max_length or data.topics[name].max_length,
            documents=documents,
            on_exhausted=data.on_exhausted,
        )
        for name in names
    ]


def _train_points(points: list[Point], shared: Config, source: Source, topics: list[Topic], pad_id: int) -> None:
    """Algorithm 1 for all points at once, then their deltas; the model, up to layer l, is gone afterwards.

    Points that have been trained before are left alone, those with a checkpoint go on from there.
    """
    points = [point for point in points if point.folder.trained is None]
    if not points:
        return
    cut = CutModel(load_up_to(source, shared.model.layer), shared.model.layer, SPAN, shared.model.parameters)
    say(f"Trained parameters: {', '.join(cut.frozen)}")
    variants, point_of = [], {}
    for point in points:
        with point.alone():
            variant = _make_variant(point.config, cut, topics)
            point.restore(variant)
            point_of[id(variant)] = point
            variants.append(variant)
    if not variants:
        return
    # Where every position counts, padding has to be where the published code had it, and masked.
    padded_left = shared.loss.mask == "none"
    if padded_left and shared.model.attn_implementation != "eager":
        say("loss.mask=none counts padding, whose states depend on the kernel: model.attn_implementation=eager.")
    steps, size, begin = shared.train.steps, shared.train.batch_size, min(v.progress.steps for v in variants)
    side = "left" if padded_left else "right"
    stream = batches(topics, steps=steps, batch_size=size, pad_id=pad_id, side=side, start=begin)
    with training_progress(steps) as show:

        def on_record(variant: Variant, record: Record) -> None:
            handle(variant, lambda point: point.log(record))
            show(record)

        def handle(variant: Variant, work: Callable[[Point], None]) -> None:
            point = point_of[id(variant)]
            with point.alone():
                work(point)
            variant.error = None if point.error is None else describe(point.error)

        train(
            cut,
            variants,
            stream,
            mask_padding=padded_left,
            log_every=shared.train.log_every,
            on_record=on_record,
            checkpoint_every=shared.train.checkpoint_every,
            on_checkpoint=lambda variant: handle(variant, lambda point: point.save(variant)),
        )
    for variant in variants:
        point = point_of[id(variant)]
        if point.error is not None:
            continue
        with point.alone():
            if variant.error is not None:
                raise UserError(variant.error)
            point.lock.check()
            point.tracker.sync()
            metadata = {"model": shared.model.name, "layer": str(cut.layer), "run": run_name(point.config)}
            file = point.folder.file("delta.safetensors")
            save_delta(file, variant.weights, cut.frozen, variant.objective.state(), metadata)
            point.folder.finish_training(point.training_metrics())


def _make_variant(config: Config, cut: CutModel, topics: list[Topic]) -> Variant:
    method = instantiate({key: value for key, value in config.method.items() if key != "name"})
    controls = {
        topic.name: method.control_vector(cut.dim, generator(config.seed, "control", topic.name)).to(cut.device)
        for topic in topics
    }
    augment = partial(rna.augment, nu=config.rna.nu, scale=config.rna.scale, seed=config.seed)
    objective = Misdirection(method, controls, config.loss.alpha, config.loss.mask, augment)
    t = config.train
    return make_variant(
        objective,
        cut.frozen,
        lr=schedule(t.schedule, t.lr, t.steps),
        betas=(t.betas[0], t.betas[1]),
        eps=t.eps,
        weight_decay=t.weight_decay,
        precision=t.precision,
        optimizer=t.optimizer,
    )


def _evaluate_points(points: list[Point], shared: Config, examiner: Examiner) -> None:
    """Each point's model, and the base model once for all; metrics, per-question records and the final screen."""
    for point in [point for point in points if point.error is None]:
        with point.alone():
            metrics, result = dict(point.folder.trained or {}), None
            if examiner.suite.tasks:
                delta, partial = point.folder.file("delta.safetensors"), point.folder.file("partial")
                result = examiner.examine(delta, partial=partial, report=point.report)
                result.write_samples(point.folder.file("samples"))
                metrics |= result.metrics
            point.lock.check()
            point.folder.finish(metrics)
            point.publish(metrics, result, examiner.suite.leaves)  # last: whatever becomes of it, the run is done
            where = point.folder.path, point.tracker.address
            show_result(metrics, shared.eval.tasks, shared.eval.queries, *where)
