"""Algorithm 1 over a list of variants. A single run is a list of one.

A variant is one grid point: an objective, its own copies of the trained matrices and its own optimizer. Prefix
and frozen span run once a step for all of them; then each variant runs its span forward and backward in turn, so
that activation memory does not grow with their number. B batch, T tokens, D hidden size.
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, pairwise
from typing import Any

import torch
from torch import Tensor

from unlearn.data.batches import Batch, Part
from unlearn.data.packing import Packed, pack
from unlearn.methods.objective import Losses
from unlearn.models.cutting import Call, CutModel, with_added
from unlearn.training.variant import Progress, Variant


@dataclass(frozen=True)
class Record:
    """A logged step. Norms, cosine and drift are means over counted tokens; losses as in Eq. 1."""

    step: int
    topic: str
    forget_loss: float
    retain_loss: float
    loss: float  # forget_loss + alpha * retain_loss
    gradient_norm: float
    facts: dict[str, float]
    tokens: int  # real tokens seen since the first step
    seconds: float  # spent since then
    tokens_per_second: float  # since the last logged step; of packed variants together, as they share the batch
    memory_mb: float  # the peak so far

    def line(self) -> dict[str, float | int | str]:
        """The line of train.jsonl."""
        values = {name: value for name, value in asdict(self).items() if name not in ("facts", "tokens", "seconds")}
        return {**values, **self.facts}


class _Shared:
    """The work on one batch that the frozen and all updated models share: packing, and the prefix."""

    def __init__(self, cut: CutModel, batch: Batch, *, masked: bool, packs: bool, recompute: bool) -> None:
        self.cut, self._batch, self._masked, self._packs, self._recompute = cut, batch, masked, packs, recompute
        self._packed: dict[Part, Packed | None] = {}
        self._inputs: dict[Part, Inputs] = {}
        self._calls: dict[Part, list[Call]] = {}

    def calls(self, part: Part) -> list[Call]:
        """The recorded calls into the span."""
        if part not in self._calls:
            padded = self._batch.parts[part]
            packed = pack(padded) if self._packs else None
            self._packed[part] = packed
            if packed is None:
                rows = padded.to(self.cut.device)
                self._inputs[part] = rows.ids_BT, rows.mask_BT.long() if self._masked else None, None
            else:
                lines = packed.to(self.cut.device)
                self._inputs[part] = lines.ids_RL, None, lines.positions_RL
            self._calls[part] = self.cut.prefix(*self._inputs[part])
        return self._calls[part]

    def hidden(self, part: Part, weights: dict[str, Tensor], added_BTD: Tensor | None = None) -> Tensor:
        """h at layer l with these weights, and with `added_BTD` on the states that enter the span: [B, T, D]."""
        calls, packed = self.calls(part), self._packed[part]
        if added_BTD is not None:
            calls = with_added(calls, added_BTD if packed is None else packed.repack(added_BTD))
        h = self.cut.span(calls, weights)
        return h if packed is None else packed.unpack(h)

    def final(self, part: Part, h_BTD: Tensor) -> Tensor:
        """What the head takes, of these states at layer l: [B, T, D]."""
        self.calls(part)
        packed = self._packed[part]
        h = h_BTD.to(self.cut.dtype)
        recompute = self._recompute and h.requires_grad
        h = self.cut.suffix(h if packed is None else packed.repack(h), *self._inputs[part], recompute=recompute)
        return h if packed is None else packed.unpack(h)

    def unmasked(self) -> _Shared:
        """The same batch without attention mask."""
        return _Shared(self.cut, self._batch, masked=False, packs=self._packs, recompute=self._recompute)


Inputs = tuple[Tensor, Tensor | None, Tensor | None]  # ids, attention mask, positions: arguments of `CutModel.prefix`


class _View:
    """A model with these weights on one batch: see `View`. Each part is computed at most once."""

    def __init__(self, shared: _Shared, weights: dict[str, Tensor]) -> None:
        self._shared, self._weights = shared, weights
        self._hidden: dict[Part, Tensor] = {}
        self._once: dict[Hashable, Any] = {}

    def hidden(self, part: Part, added_BTD: Tensor | None = None) -> Tensor:
        if added_BTD is not None:
            return self._shared.hidden(part, self._weights, added_BTD)
        if part not in self._hidden:
            self._hidden[part] = self._shared.hidden(part, self._weights)
        return self._hidden[part]

    def final(self, part: Part, hidden_BTD: Tensor | None = None) -> Tensor:
        return self._shared.final(part, self.hidden(part) if hidden_BTD is None else hidden_BTD)

    def logits(self, states_ND: Tensor) -> Tensor:
        return self._shared.cut.logits(states_ND)

    def once(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        if key not in self._once:
            self._once[key] = compute()
        return self._once[key]

    def without_mask(self) -> _View:
        return self.once("without mask", lambda: _View(self._shared.unmasked(), self._weights))


@dataclass(frozen=True)
class Schedule:
    """After every how many steps a variant's listener is called (None: never). See `Listener`."""

    log: int = 1
    checkpoint: int | None = None
    keep: int | None = None


def train_variants(
    cut: CutModel,
    variants: Sequence[Variant],
    batches: Iterable[Batch],
    *,
    mask_padding: bool,
    schedule: Schedule = Schedule(),
    check_late: bool | None = None,
    recompute: bool = False,
) -> None:
    """Update every variant on every batch, except on those that it has been trained on before.

    Args:
        batches: with numbers of steps in order, beginning no later than the variant that is behind all others.
        mask_padding: give the model an attention mask; needless where padding is on the right.
        recompute: keep only the inputs of layers above l for the backward pass (activation checkpointing), for methods
            that need logits.
        check_late: look at a step's loss only when the next step begins, so that the host need not wait for the device
            in a step that is not logged. By default on a GPU. Methods on likelihoods wait: they pick tokens by mask.

    A variant whose loss or gradient is not finite stops there, with `error` set and its matrices as before that step;
    the others go on.
    """
    clock = _Clock()
    checks = _Checks(late=cut.device.type == "cuda" if check_late is None else check_late)
    running = list(variants)
    for batch, following in pairwise(chain(batches, [None])):
        assert batch is not None
        last = following is None
        logged = last or batch.step % schedule.log == 0
        clock.count(batch.tokens)
        shared = _Shared(cut, batch, masked=mask_padding, packs=cut.packs and not mask_padding, recompute=recompute)
        _prepare(running, following)
        running = [variant for variant in running if checks.passed(variant)]
        on_device = batch.to(cut.device)
        frozen = _View(shared, cut.frozen)
        records: list[tuple[Variant, Record]] = []
        for variant in [v for v in running if v.progress.steps == batch.step]:
            record = _step(variant, on_device, frozen, _View(shared, variant.weights), checks, batch.tokens, logged)
            if record is not None:
                records.append((variant, record))
        for variant, record in records:  # at the end of the step, so that its time covers all variants
            if checks.passed(variant):
                variant.records.append(clock.timed(record))
                variant.listener.on_record(variant, variant.records[-1])
        running = [variant for variant in running if variant.error is None]
        for variant in [v for v in running if v.progress.steps == batch.step + 1]:
            variant.progress = replace(variant.progress, seconds=variant.progress.seconds + clock.since_step)
            if not last:
                _after_step(variant, schedule, checks)
        clock.step()
        if logged:
            clock.lap()
        if not running:
            return


def _prepare(variants: Sequence[Variant], following: Batch | None) -> None:
    """Let those variants prepare the next step that will take it."""
    for variant in variants:
        if following is not None and variant.progress.steps <= following.step:
            variant.objective.prepare(following)


def _step(
    variant: Variant, batch: Batch, frozen: _View, updated: _View, checks: _Checks, tokens: int, logged: bool
) -> Record | None:
    """Lines 6 to 13 of Algorithm 1 for one variant: losses, gradients, update. Returns the record of a logged step."""
    losses = variant.objective(batch, frozen, updated)
    _backward(losses, list(variant.weights.values()))
    norm = torch.nn.utils.get_total_norm([w.grad for w in variant.weights.values() if w.grad is not None])
    checks.begin(variant, _StepCheck(batch, losses, norm))
    if not checks.late and not checks.passed(variant):
        variant.optimizer.zero_grad()  # so that its gradients do not stay in memory
        return None
    record = _record(batch, losses, norm, variant, tokens) if logged else None
    _update(variant, batch.step, checks.pending(variant))
    before = variant.progress
    variant.progress = Progress(batch.step + 1, before.tokens + tokens, before.seconds)
    return record


def _backward(losses: Losses, weights: Sequence[Tensor]) -> None:
    """The gradients of the matrices, with the noise that a placebo of RNA adds to them."""
    noises = [None] * len(weights) if losses.gradient_noise is None else losses.gradient_noise(weights)
    losses.total.backward()
    for weight, noise in zip(weights, noises, strict=True):
        if weight.grad is not None and noise is not None:
            weight.grad += noise


def _after_step(variant: Variant, schedule: Schedule, checks: _Checks) -> None:
    """Call a variant's listener if a checkpoint, or weights to be kept, are due."""
    listener, steps = variant.listener, variant.progress.steps
    for every, act in ((schedule.checkpoint, listener.on_checkpoint), (schedule.keep, listener.on_keep)):
        if every is not None and steps % every == 0 and checks.passed(variant):
            act(variant)


class _Checks:
    """Whether each variant's last step was finite: looked at in the step itself or, if `late`, when the next begins."""

    def __init__(self, *, late: bool) -> None:
        self.late = late
        self._pending: dict[int, _StepCheck] = {}  # by the id of the variant

    def begin(self, variant: Variant, check: _StepCheck) -> None:
        """Begin the check of a variant's step."""
        self._pending[id(variant)] = check

    def pending(self, variant: Variant) -> _StepCheck | None:
        """The check of a variant's last step, if nobody has looked at it yet."""
        return self._pending.get(id(variant))

    def passed(self, variant: Variant) -> bool:
        """Look at a variant's last step. Takes the step back and returns False if it was not finite."""
        check = self._pending.pop(id(variant), None)
        problem = None if check is None else check.problem()
        if check is not None and problem is not None:
            variant.error = problem
            variant.progress = replace(variant.progress, steps=check.step)
        return variant.error is None


class _StepCheck:
    """A step's losses and gradient norm, copied to the host without waiting for the device: are they finite?"""

    def __init__(self, batch: Batch, losses: Losses, norm: Tensor) -> None:
        self.step, self._topic = batch.step, batch.topic
        values_4 = torch.stack([v.detach().float() for v in (losses.total, norm, losses.forget, losses.retain)])
        self.not_finite = (~values_4[:2].isfinite()).any().float()  # on the device
        self._ready: torch.cuda.Event | None = None
        if values_4.device.type == "cuda":
            self._values_4 = torch.empty(4, pin_memory=True).copy_(values_4, non_blocking=True)
            self._ready = torch.cuda.Event()
            self._ready.record(torch.cuda.current_stream(values_4.device))
        else:
            self._values_4 = values_4

    def problem(self) -> str | None:
        """A sentence if something is not finite. Waits until it is computed."""
        if self._ready is not None:
            self._ready.synchronize()
        total, norm, forget, retain = self._values_4.tolist()
        if math.isfinite(total) and math.isfinite(norm):
            return None
        what = f"the gradient's norm became {norm}" if math.isfinite(total) else f"the loss became {total}"
        # Before the first update the model is the base model.
        lower = "A lower learning rate (train.lr) or a" if self.step else "No update was made yet. A"
        return (
            f"{what} at step {self.step}, topic {self._topic} (forget loss {forget:g}, retain loss {retain:g}). "
            f"{lower} lower coefficient of the method may help."
        )


def _update(variant: Variant, step: int, check: _StepCheck | None) -> None:
    """Update the matrices. If a check is pending and it will fail, the optimizer skips the update itself."""
    optimizer = variant.optimizer
    optimizer.found_inf = None if check is None else check.not_finite  # type: ignore[attr-defined]
    for group in optimizer.param_groups:
        group["lr"] = variant.lr(step)
    optimizer.step()
    optimizer.zero_grad()  # at once: otherwise gradients of all variants would be in memory


class _Clock:
    """Seconds since the last step, and tokens per second since the last logged step."""

    def __init__(self) -> None:
        self.lap_start = self.step_start = time.perf_counter()
        self.lap_tokens = 0

    def count(self, tokens: int) -> None:
        self.lap_tokens += tokens

    def step(self) -> None:
        self.step_start = time.perf_counter()

    def lap(self) -> None:
        self.lap_start, self.lap_tokens = time.perf_counter(), 0

    @property
    def since_step(self) -> float:
        return time.perf_counter() - self.step_start

    def timed(self, record: Record) -> Record:
        rate = self.lap_tokens / (time.perf_counter() - self.lap_start)
        return replace(record, seconds=record.seconds + self.since_step, tokens_per_second=rate)


def _record(batch: Batch, losses: Losses, norm: Tensor, variant: Variant, tokens: int) -> Record:
    """The record of the current step, without its times: `_Clock.timed` adds them."""
    return Record(
        step=batch.step,
        topic=batch.topic,
        forget_loss=losses.forget.item(),
        retain_loss=losses.retain.item(),
        loss=losses.total.item(),
        gradient_norm=norm.item(),
        facts={name: value.item() for name, value in losses.facts().items()},
        tokens=variant.progress.tokens + tokens,
        seconds=variant.progress.seconds,
        tokens_per_second=math.nan,
        memory_mb=peak_memory_mb(),
    )


def peak_memory_mb() -> float:
    """Peak memory in MiB: of the GPU's allocator if there is a GPU, else of this process."""
    if torch.cuda.is_available():
        return max(map(torch.cuda.max_memory_allocated, range(torch.cuda.device_count()))) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
