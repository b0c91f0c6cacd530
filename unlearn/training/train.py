"""Training in memory: `train` for a user's own code, and the pieces of which the command line's training consists."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm.auto import tqdm

from unlearn.arguments import MASKS, check_choice, check_integer, check_number
from unlearn.data.batches import Batch, batches
from unlearn.data.corpora import Topic, check_rows
from unlearn.data.counting import documents_needed
from unlearn.data.topics import Corpus, check_enough, make_topic, token_rows
from unlearn.errors import UserError
from unlearn.methods.method import Method
from unlearn.methods.noise import Ahead
from unlearn.methods.objective import Alpha, Setup
from unlearn.methods.rna import RNA
from unlearn.models.cutting import CutModel
from unlearn.training.loop import Record, Schedule, train_variants
from unlearn.training.optimizer import Optimizer, schedule
from unlearn.training.variant import Listener, Variant, make_variant

Value = TypeVar("Value")
OnRecord = Callable[[Variant, Record], None]


@dataclass(frozen=True)
class Setting:
    """What distinguishes the variants of one training: see `train`."""

    method: Method
    lr: float
    alpha: Alpha
    seed: int
    optimizer: Optimizer


def begin(model: CutModel, setting: Setting, topics: Sequence[str], *, steps: int, mask: str, ahead: Ahead) -> Variant:
    """A variant before its first step. `ahead` draws noise for all variants of a training."""
    setup = Setup(topics, model.dim, model.device, setting.seed, setting.alpha, mask, ahead)
    lr = schedule(setting.optimizer.schedule, setting.lr, steps)
    objective = setting.method.objective(setup)
    return make_variant(objective, model.frozen, lr, setting.optimizer, method=setting.method, model=model)


def is_padded_left(mask: str) -> bool:
    """Where every position counts, padding is where the published code had it: on the left, with an attention mask."""
    return mask == "none"


def stream(
    topics: Sequence[Topic],
    *,
    steps: int,
    batch_size: int,
    mask: str,
    pad_id: int,
    start: int = 0,
    preferred: list[list[int]] | None = None,
) -> Iterator[Batch]:
    """The batches of steps `start` to `steps` - 1."""
    return batches(
        topics,
        steps=steps,
        batch_size=batch_size,
        pad_id=pad_id,
        side="left" if is_padded_left(mask) else "right",
        start=start,
        preferred=preferred,
        first_preferred=mask == "none",  # as the published code does
    )


def train(
    model: CutModel,
    methods: Method | Sequence[Method],
    topics: Mapping[str, tuple[Corpus, Corpus]] | Sequence[Topic],
    *,
    steps: int,
    lr: float | Sequence[float],
    alpha: Alpha | Sequence[Alpha],
    batch_size: int = 4,
    seed: int | Sequence[int] = 0,
    mask: str = "padding",
    optimizer: Optimizer = Optimizer(),
    max_length: int = 512,
    on_exhausted: str = "error",
    preferred: Corpus | None = None,
    recompute: bool = False,
    log_every: int = 1,
    on_record: OnRecord | None = None,
    progress: bool = False,
) -> list[Variant]:
    """Algorithm 1 in memory: one variant of the model for each method, all trained together on the same batches.

    The model itself does not change. A variant has its own copy of the trained matrices and of the optimizer.

    Args:
        model: cut at layer l. Methods on likelihoods need the whole model.
        methods: one, or several; each with its RNA.
        topics: {name: (texts to forget, texts to retain)}; steps take the topics in turn. Texts are a list of strings,
            a list of lists of token ids, a file or folder, or "hub:REPOSITORY:CONFIGURATION:SPLIT".
        steps: number of steps T, at least 1.
        lr: learning rate, above 0; one, or one for each method.
        alpha: weight of the retain loss, at least 0; a number, or {topic: number}; one, or one for each method.
        batch_size: texts to forget, and texts to retain, of a step.
        seed: of control vectors and noise; one, or one for each method.
        mask: the positions that the losses leave out: "padding", "padding_and_bos" (each text's first token, too), or
            "none" (the published code).
        optimizer: AdamW and its settings.
        max_length: texts are cut to this many tokens.
        on_exhausted: if there are fewer texts than steps need: "error", or "cycle" to start over.
        preferred: texts that DPO prefers to the texts to forget.
        recompute: let layers above l run again in the backward pass, which saves memory; for methods on likelihoods.
        log_every: steps between records.
        on_record: called with a variant and its new record.
        progress: show a progress bar.

    Returns:
        A variant for each method, in their order. One whose loss is not finite has stopped, with the reason in its
        `error`; the others went on. A warning says so.

    Raises:
        UserError: an argument is not allowed, or a text cannot be used.
    """
    chosen = [methods] if isinstance(methods, (Method, type)) else list(methods)
    _check(
        model,
        chosen,
        preferred,
        steps=steps,
        batch_size=batch_size,
        mask=mask,
        optimizer=optimizer,
        log_every=log_every,
    )
    made = _topics(model, topics, max_length, documents_needed(steps, batch_size, max(1, len(topics))), on_exhausted)
    settings = _settings(chosen, lr, alpha, seed, optimizer, made)
    rows = None
    if preferred is not None:
        rows = token_rows(preferred, "preferred", model.tokenizer, max_length, steps * batch_size).rows
    _check_rows(model, chosen, made, rows, mask)
    ahead, names = Ahead(model.dim, model.device), [topic.name for topic in made]
    variants = [begin(model, setting, names, steps=steps, mask=mask, ahead=ahead) for setting in settings]
    for variant in variants:
        variant.listener = _Calling(on_record)
    taken: Iterable[Batch] = stream(
        made,
        steps=steps,
        batch_size=batch_size,
        mask=mask,
        pad_id=model.pad_id,
        preferred=rows,
    )
    if progress:
        taken = tqdm(taken, total=steps, desc="training", unit="step")
    train_variants(
        model,
        variants,
        taken,
        mask_padding=is_padded_left(mask),
        schedule=Schedule(log=log_every),
        recompute=recompute,
    )
    for variant in variants:
        variant.optimizer.state.clear()  # twice the size of the matrices
        if variant.error is not None:
            warnings.warn(f"{variant.method}: {variant.error}", stacklevel=2)
    return variants


class _Calling(Listener):
    """Calls a function of the user's."""

    def __init__(self, on_record: OnRecord | None) -> None:
        self._on_record = on_record

    def on_record(self, variant: Variant, record: Record) -> None:
        if self._on_record is not None:
            self._on_record(variant, record)


def _settings(
    methods: Sequence[Method],
    lr: float | Sequence[float],
    alpha: Alpha | Sequence[Alpha],
    seed: int | Sequence[int],
    optimizer: Optimizer,
    topics: Sequence[Topic],
) -> list[Setting]:
    rates, weights, seeds = (
        _for_each(name, value, len(methods)) for name, value in (("lr", lr), ("alpha", alpha), ("seed", seed))
    )
    settings = [Setting(*values, optimizer) for values in zip(methods, rates, weights, seeds, strict=True)]
    for setting in settings:
        check_number("lr", setting.lr, above=0)
        check_integer("seed", setting.seed, at_least=0)
        _check_alpha(setting.alpha, topics)
    return settings


def _for_each(name: str, value: Any, count: int) -> list[Any]:
    """One value for each method."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return [value] * count
    if len(value) != count:
        raise UserError(f"{name} has {len(value)} values for {count} methods: give one value, or one for each method.")
    return list(value)


def _check_alpha(alpha: Alpha, topics: Sequence[Topic]) -> None:
    if not isinstance(alpha, Mapping):
        check_number("alpha", alpha, at_least=0)
        return
    for topic in topics:
        if topic.name not in alpha:
            raise UserError(f"alpha has no value for topic {topic.name!r}: give one number, or one for each topic.")
        check_number(f"alpha[{topic.name!r}]", alpha[topic.name], at_least=0)


def _topics(
    model: CutModel,
    topics: Mapping[str, tuple[Corpus, Corpus]] | Sequence[Topic],
    max_length: int,
    documents: int,
    on_exhausted: str,
) -> list[Topic]:
    """The tokenised topics, with as many texts as training takes."""
    if not topics:
        raise UserError("topics is empty: give at least one, for example {'biology': (forget_texts, retain_texts)}.")
    check_integer("max_length", max_length, at_least=1)
    check_choice("on_exhausted", on_exhausted, ("error", "cycle"))
    if isinstance(topics, Mapping):
        for name, pair in topics.items():
            if isinstance(pair, (str, Path)) or len(pair) != 2:
                raise UserError(f"topic {name}: give two corpora, (texts to forget, texts to retain).")
        topics = [
            make_topic(name, forget, retain, model.tokenizer, max_length=max_length, documents=documents)
            for name, (forget, retain) in topics.items()
        ]
    if on_exhausted == "error":
        check_enough(topics, documents)
    return list(topics)


def _check_rows(
    model: CutModel, methods: Sequence[Method], topics: Sequence[Topic], preferred: list[list[int]] | None, mask: str
) -> None:
    rows = {f"topic {topic.name}, forget": topic.forget for topic in topics}
    rows |= {f"topic {topic.name}, retain": topic.retain for topic in topics}
    rows |= {"preferred": preferred} if preferred else {}
    first_counted = mask == "none" or (mask == "padding" and not any(method.needs_logits for method in methods))
    check_rows(rows, model.model.get_input_embeddings().weight.shape[0], first_counted=first_counted)


def _check(
    model: CutModel,
    methods: Sequence[Method],
    preferred: Corpus | None,
    *,
    steps: int,
    batch_size: int,
    mask: str,
    optimizer: Optimizer,
    log_every: int,
) -> None:
    if not methods:
        raise UserError("methods is empty: give at least one, for example RMU(c=6.5).")
    check_integer("steps", steps, at_least=1)
    check_integer("batch_size", batch_size, at_least=1)
    check_integer("log_every", log_every, at_least=1)
    check_choice("mask", mask, MASKS)
    if not isinstance(optimizer, Optimizer):
        raise UserError(f"optimizer={optimizer!r} is not allowed: it must be Optimizer(...).")
    if model.dtype == torch.float16:
        raise UserError(
            "a model in float16 is not allowed: small gradients would become zero. Use bfloat16 or float32."
        )
    for method in methods:
        if not isinstance(method, Method):
            raise UserError(f"methods: {method!r} is no method. Give for example RMU(c=6.5).")
        if not isinstance(method.rna, RNA):
            raise UserError(f"rna={method.rna!r} is not allowed: it must be RNA(nu=NUMBER).")
        if method.needs_logits and not model.is_whole:
            raise UserError(f"{method} needs the whole model: CutModel.load(..., whole=True).")
        if method.needs_preferred and not preferred:
            raise UserError(f'{method} needs preferred texts, for example preferred=["I don\'t know."].')
