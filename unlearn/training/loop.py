"""Algorithm 1 over a list of variants. A single run is a list of one.

A variant is one grid point: an objective, its own copies of the trained matrices and its own optimizer. Prefix
and frozen span run once a step for all of them; then each variant runs its span forward and backward in turn, so
that activation memory does not grow with their number. B batch, T tokens, D hidden size.
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from unlearn.data.batches import Batch, Part
from unlearn.data.packing import Packed, pack
from unlearn.methods.objective import Losses
from unlearn.models.cutting import Call, CutModel
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
                here = padded.to(self.cut.device)
                self._inputs[part] = here.ids_BT, here.mask_BT.long() if self._masked else None, None
            else:
                there = packed.to(self.cut.device)
                self._inputs[part] = there.ids_RL, None, there.positions_RL
            self._calls[part] = self.cut.prefix(*self._inputs[part])
        return self._calls[part]

    def hidden(self, part: Part, weights: dict[str, Tensor]) -> Tensor:
        """h at layer l with these weights: [B, T, D]."""
        h = self.cut.span(self.calls(part), weights)
        packed = self._packed[part]
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
    """A model with these weights on one batch. Each part is computed at most once."""

    def __init__(self, shared: _Shared, weights: dict[str, Tensor]) -> None:
        self._shared, self._weights = shared, weights
        self._hidden: dict[Part, Tensor] = {}
        self._once: dict[Hashable, Any] = {}

    def hidden(self, part: Part) -> Tensor:
        """h at layer l: [B, T, D]."""
        if part not in self._hidden:
            self._hidden[part] = self._shared.hidden(part, self._weights)
        return self._hidden[part]

    def final(self, part: Part, hidden_BTD: Tensor | None = None) -> Tensor:
        """What the head takes: [B, T, D]."""
        return self._shared.final(part, self.hidden(part) if hidden_BTD is None else hidden_BTD)

    def logits(self, states_ND: Tensor) -> Tensor:
        """The head's logits: [N, V]."""
        return self._shared.cut.logits(states_ND)

    def once(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """The result of `compute`, which runs once for each key."""
        if key not in self._once:
            self._once[key] = compute()
        return self._once[key]

    def without_mask(self) -> _View:
        """The same model without attention mask."""
        return self.once("without mask", lambda: _View(self._shared.unmasked(), self._weights))


def train(
    cut: CutModel,
    variants: list[Variant],
    batches: Iterable[Batch],
    *,
    mask_padding: bool,
    log_every: int,
    on_record: Callable[[Variant, Record], None],
    checkpoint_every: int | None = None,
    on_checkpoint: Callable[[Variant], None] = lambda _: None,
    keep_every: int | None = None,
    on_keep: Callable[[Variant], None] = lambda _: None,
    check_late: bool | None = None,
    recompute: bool = False,
) -> None:
    """Update every variant on every batch, except on those that it has been trained on before.

    Args:
        batches: with numbers of steps in order, beginning no later than the variant that is behind all others.
        mask_padding: give the model an attention mask; needless where padding is on the right.
        on_record: called with every `log_every`-th step's record, the first and the last included.
        on_checkpoint: called with each variant after every `checkpoint_every`-th step, except the last one.
        keep_every, on_keep: the same for weights that are kept to be evaluated later.
        recompute: keep only the inputs of layers above l for the backward pass (activation checkpointing), for methods
            that need logits.
        check_late: look at a step's loss only when the next step begins, so that the host need not wait for the device
            in a step that is not logged. By default on a GPU. Methods on likelihoods wait: they pick tokens by mask.

    A variant whose loss or gradient is not finite stops there, with `error` set and its matrices as before that step;
    the others go on.
    """
    running = list(variants)
    clock = _Clock()
    late = cut.device.type == "cuda" if check_late is None else check_late
    checks: dict[int, _StepCheck] = {}  # id of a variant -> its last step, not yet checked
    for batch, last, following in _look_ahead(batches):
        tokens = batch.tokens
        clock.count(tokens)
        packs = cut.packs and not mask_padding
        shared = _Shared(cut, batch, masked=mask_padding, packs=packs, recompute=recompute)
        batch = batch.to(cut.device)
        frozen = _View(shared, cut.frozen)
        logged = last or batch.step % log_every == 0
        records: list[tuple[Variant, Record]] = []
        if following is not None:
            for variant in (v for v in running if v.progress.steps <= following.step):
                variant.objective.prepare(following)
        for variant in running:
            _finish_check(variant, checks)
        for variant in (v for v in running if v.error is None and v.progress.steps == batch.step):
            losses = variant.objective(batch, frozen, _View(shared, variant.weights))
            losses.total.backward()
            norm = torch.nn.utils.get_total_norm([w.grad for w in variant.weights.values() if w.grad is not None])
            checks[id(variant)] = _StepCheck(batch, losses, norm)
            if not late and not _finish_check(variant, checks):
                variant.optimizer.zero_grad()  # so that its gradients do not stay in memory
                continue
            if logged:
                records.append((variant, _record(batch, losses, norm, variant, tokens)))
            _update(variant, batch.step, checks.get(id(variant)))
            before = variant.progress
            variant.progress = Progress(batch.step + 1, before.tokens + tokens, before.seconds)
        for variant, record in records:  # at the end of the step, so that its time covers all variants
            if _finish_check(variant, checks):
                on_record(variant, clock.timed(record))
        running = [v for v in running if v.error is None]
        for variant in (v for v in running if v.progress.steps == batch.step + 1):
            variant.progress = replace(variant.progress, seconds=variant.progress.seconds + clock.since_step)
            for every, act in ((checkpoint_every, on_checkpoint), (keep_every, on_keep)):
                due = every and variant.progress.steps % every == 0 and not last
                if due and _finish_check(variant, checks):
                    act(variant)
        clock.step()
        if logged:
            clock.lap()
        if not running:
            return


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
        return (
            f"{what} at step {self.step}, topic {self._topic} (forget loss {forget:g}, retain loss {retain:g}). What "
            f"was logged before is in train.jsonl. A lower train.lr or a lower coefficient of the method may help."
        )


def _finish_check(variant: Variant, checks: dict[int, _StepCheck]) -> bool:
    """Do the pending check of a variant's last step. Returns false, and takes the step back, if it was not finite."""
    check = checks.pop(id(variant), None)
    problem = None if check is None else check.problem()
    if check is not None and problem is not None:
        variant.error = problem
        variant.progress = replace(variant.progress, steps=check.step)
    return variant.error is None


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


def _look_ahead(batches: Iterable[Batch]) -> Iterator[tuple[Batch, bool, Batch | None]]:
    """Each batch, whether it is the last one, and the next one."""
    stream = iter(batches)
    batch = next(stream, None)
    while batch is not None:
        following = next(stream, None)
        yield batch, following is None, following
        batch = following
