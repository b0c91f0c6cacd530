"""The whole run on one page: model -> data -> variants -> train -> save -> evaluate -> track.

`run` takes one configuration; `run_together` a list of them that share model and data, and a run is a list of one.
"""

from __future__ import annotations

import resource
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
import wandb
from hydra.utils import instantiate

from unlearn import rna, screen
from unlearn.checkpoint import load_checkpoint, save_checkpoint
from unlearn.cpu_memory import reuse_memory
from unlearn.cut import CutModel
from unlearn.data import Topic, batches, documents_needed, load_topic
from unlearn.delta import save_delta
from unlearn.errors import UserError, describe
from unlearn.evaluate.examiner import Examiner
from unlearn.evaluate.journal import Report
from unlearn.fingerprint import checkpoint_fingerprint, text_fingerprint
from unlearn.identity import identity, run_folder, run_name
from unlearn.lock import Busy, FolderLock, Progress
from unlearn.model import Source, check_weights, load_config, load_tokenizer, load_up_to
from unlearn.objective import Misdirection
from unlearn.randomness import generator
from unlearn.run_folder import RunFolder
from unlearn.schema import SPAN, Config, unshared
from unlearn.track import Tracker, start_wandb
from unlearn.train import Record, Variant, make_variant, train


@dataclass
class Point:
    """One grid point on its way: configuration, folder, tracker, and what came of its training."""

    config: Config
    folder: RunFolder
    lock: FolderLock
    tracker: Tracker
    last: Record | None = None
    error: Exception | None = None

    def fail(self, error: Exception) -> None:
        """Note that this point has failed, here and in its folder if it is still ours; the others go on."""
        self.error = error
        self.tracker.close(failed=True)
        if not isinstance(error, Busy):
            self.folder.fail(describe(error))


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
    source = make_source(shared)
    tokenizer = load_tokenizer(source)
    _check_layers(shared, load_config(source).get_text_config().num_hidden_layers)
    topics = load_topics(shared, tokenizer)
    check_weights(source, shared.model.layer if not shared.eval.tasks else None)
    examiner = Examiner(shared, source, tokenizer)
    inputs = {
        "model": checkpoint_fingerprint(source),
        "data": {topic.name: topic.sha256 for topic in topics},
        "query_words": text_fingerprint(
            [f"{query}: {word}" for query, listed in examiner.words.items() for word in listed]
        ),
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
                point = stack.enter_context(_opened(config, inputs, hydra_folder))
                if point is None:
                    screen.say(f"{path} holds this run, finished: nothing to do (train.force=true repeats it).")
                else:
                    points.append(point)
            except Exception as error:
                errors[path] = error
        if points:
            _train_points(points, shared, source, topics, _pad_id(tokenizer))
            _evaluate_points(points, shared, examiner)
    errors |= {point.folder.path: point.error for point in points}
    return [Outcome(run_folder(config), errors[run_folder(config)]) for config in configs]


def _shared(configs: list[Config]) -> Config:
    """The configuration whose model, data and schedule all share. Raises UserError where they differ."""
    first = configs[0]
    for key in (key for other in configs[1:] for key in unshared(first, other)):
        raise UserError(f"{key} differs between runs that are to share one process.")
    return first


def make_source(config: Config) -> Source:
    """Where the model comes from and how it is to be loaded."""
    m = config.model
    return Source(m.path, m.revision, m.gguf_file, m.trust_remote_code, m.attn_implementation, m.dtype, m.device)


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


@contextmanager
def _opened(config: Config, inputs: dict[str, Any], hydra_folder: Path | None) -> Iterator[Point | None]:
    """A point whose folder is held, says "running" and has a tracker; afterwards it says "done" or "failed".

    None if this very run is there, done. Raises UserError if another run is, and Busy while another process works on
    it. What ends the process, a signal for instance, leaves it "running": the next attempt goes on from there.
    """
    folder = RunFolder(run_folder(config))
    folder.claim(identity(config))
    if _finished(config, folder, inputs):
        if folder.untidy:
            with suppress(Busy), FolderLock(folder.path):
                folder.tidy()
        yield None
        return
    with FolderLock(folder.path) as lock, _failing(folder):
        folder.read()
        if _finished(config, folder, inputs):  # meanwhile
            yield None
            return
        plain = asdict(config)
        folder.start(plain, identity(config), inputs, anew=config.train.force and not folder.begun_by_this_job)
        if hydra_folder is not None:
            folder.keep_hydra_files(hydra_folder)
        with Tracker(folder.path, _wandb_run(config, folder)) as tracker:
            yield Point(config, folder, lock, tracker)


def _finished(config: Config, folder: RunFolder, inputs: dict[str, Any]) -> bool:
    """Whether this very run is in `folder`, done. Raises UserError if it saw other inputs."""
    if not folder.done or (config.train.force and not folder.begun_by_this_job):
        return False
    folder.verify(inputs)
    return True


@contextmanager
def _failing(folder: RunFolder) -> Iterator[None]:
    """Whatever goes wrong inside is noted in the folder, unless its run has come to an end before."""
    try:
        yield
    except Busy:  # the folder is another's now
        raise
    except Exception as error:
        if folder.record.get("status") == "running":
            folder.fail(describe(error))
        raise


def _wandb_run(config: Config, folder: RunFolder) -> wandb.Run | None:
    """The W&B run of this folder, begun or continued."""
    if config.tracker.name != "wandb":
        return None
    if "wandb_id" not in folder.record:
        folder.record["wandb_id"] = uuid.uuid4().hex[:8]
        folder.write()
    settings = {key: value for key, value in asdict(config.tracker).items() if key != "name"}
    named = {"run_id": folder.record["wandb_id"], "name": run_name(config), "config": asdict(config)}
    return start_wandb(folder.path, **named, **settings)


def _train_points(points: list[Point], shared: Config, source: Source, topics: list[Topic], pad_id: int) -> None:
    """Algorithm 1 for all points at once, then their deltas; the model, up to layer l, is gone afterwards.

    Points that have been trained before are left alone, those with a checkpoint go on from there.
    """
    points = [point for point in points if point.folder.trained is None]
    if not points:
        return
    cut = CutModel(load_up_to(source, shared.model.layer), shared.model.layer, SPAN, shared.model.parameters)
    screen.say(f"Trained parameters: {', '.join(cut.frozen)}")
    variants, point_of = [], {}
    for point in points:
        try:
            variants.append(_make_variant(point, cut, topics))
            point_of[id(variants[-1])] = point
        except Exception as error:
            point.fail(error)
    if not variants:
        return
    # Where every position counts, padding has to be where the published code had it, and masked.
    padded_left = shared.loss.mask == "none"
    if padded_left and shared.model.attn_implementation != "eager":
        screen.say("loss.mask=none counts padding, whose states depend on the kernel: model.attn_implementation=eager.")
    steps, size, begin = shared.train.steps, shared.train.batch_size, min(v.progress.steps for v in variants)
    side = "left" if padded_left else "right"
    stream = batches(topics, steps=steps, batch_size=size, pad_id=pad_id, side=side, start=begin)
    began = time.time()
    with screen.training_progress(steps) as show:

        def on_record(variant: Variant, record: Record) -> None:
            point = point_of[id(variant)]
            point.last = record
            point.tracker.log_step(record)
            point.lock.report(Progress("training", record.step + 1, steps, begin, began))
            show(record)

        train(
            cut,
            variants,
            stream,
            mask_padding=padded_left,
            log_every=shared.train.log_every,
            on_record=on_record,
            checkpoint_every=shared.train.checkpoint_every,
            on_checkpoint=lambda variant: _save_checkpoint(point_of[id(variant)], variant),
        )
    for variant in variants:
        point = point_of[id(variant)]
        if variant.error is not None:
            point.fail(UserError(variant.error))
        else:
            metadata = {"model": shared.model.name, "layer": str(cut.layer), "run": run_name(point.config)}
            file = point.folder.file("delta.safetensors")
            save_delta(file, variant.weights, cut.frozen, variant.objective.state(), metadata)
            point.folder.finish_training(_training_metrics(point))


def _save_checkpoint(point: Point, variant: Variant) -> None:
    """Training goes on where the disk is full: it has the last good one still, and may need no other."""
    try:
        save_checkpoint(point.folder.file("checkpoint.safetensors"), variant)
    except OSError as error:
        screen.say(f"{point.folder.path}: no checkpoint after step {variant.progress.steps - 1}: {error}")


def _make_variant(point: Point, cut: CutModel, topics: list[Topic]) -> Variant:
    """A point's variant, where its checkpoint left it if it has one."""
    config = point.config
    method = instantiate({key: value for key, value in config.method.items() if key != "name"})
    controls = {
        topic.name: method.control_vector(cut.dim, generator(config.seed, "control", topic.name)).to(cut.device)
        for topic in topics
    }
    augment = partial(rna.augment, nu=config.rna.nu, scale=config.rna.scale, seed=config.seed)
    objective = Misdirection(method, controls, config.loss.alpha, config.loss.mask, augment)
    t = config.train
    variant = make_variant(
        objective,
        cut.frozen,
        lr=t.lr,
        betas=(t.betas[0], t.betas[1]),
        eps=t.eps,
        weight_decay=t.weight_decay,
        precision=t.precision,
        optimizer=t.optimizer,
    )
    checkpoint = point.folder.file("checkpoint.safetensors")
    if checkpoint.is_file():
        try:
            load_checkpoint(checkpoint, variant)
            screen.say(f"{point.folder.path}: going on after step {variant.progress.steps - 1}.")
        except UserError as error:
            screen.say(f"{error} Starting over.")
    point.tracker.rewind(variant.progress.steps)
    return variant


def _evaluate_points(points: list[Point], shared: Config, examiner: Examiner) -> None:
    """Each point's model, and the base model once for all; metrics, per-question records and the final screen."""
    for point in [point for point in points if point.error is None]:
        try:
            metrics = dict(point.folder.trained or {})
            if examiner.suite.tasks:
                delta, partial = point.folder.file("delta.safetensors"), point.folder.file("partial")
                result = examiner.examine(delta, partial=partial, report=_reporter(point.lock))
                result.write_samples(point.folder.file("samples"))
                metrics |= result.metrics
            point.tracker.log_metrics(metrics)
            point.folder.finish(metrics)
        except Exception as error:
            point.fail(error)
        else:
            where = point.folder.path, point.tracker.address
            screen.show_result(metrics, shared.eval.tasks, shared.eval.queries, *where)


def _reporter(lock: FolderLock) -> Report:
    """Tells the lock how far an evaluation is."""
    began: dict[str, tuple[float, int]] = {}

    def report(phase: str, done: int, total: int) -> None:
        since, skipped = began.setdefault(phase, (time.time(), done))
        lock.report(Progress(phase, done, total, skipped, since))

    return report


def _training_metrics(point: Point) -> dict[str, float]:
    """Final figures of the training. Only the last three may differ between equal runs."""
    last = point.last
    assert last is not None
    return {
        "train/steps": last.step + 1,
        "train/forget_loss": last.forget_loss,
        "train/retain_loss": last.retain_loss,
        "train/seconds": last.seconds,
        "train/tokens_per_second": last.tokens / last.seconds,
        "train/peak_memory_mb": _peak_memory_mb(),
    }


def _peak_memory_mb() -> float:
    """Of the GPU's allocator where there is one, else of this process, in MiB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
