"""Evaluation of one configuration: the base model, once for all runs, and the unlearned models of any deltas."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from unlearn.config.identity import RESULTS_VERSION
from unlearn.evaluation.cache import CachedAnswers, cache_place
from unlearn.evaluation.harness import MaxLogitPlan, against_base, evaluate, with_agreement
from unlearn.evaluation.journal import Journals, Report
from unlearn.evaluation.suite import Suite
from unlearn.models.delta import check_delta, load_delta
from unlearn.models.fingerprint import states_key
from unlearn.models.group import ModelGroup
from unlearn.models.loading import Source, load_whole
from unlearn.models.memory import in_batches
from unlearn.records.answers import Answers
from unlearn.records.samples import SCHEMA
from unlearn.screen import say
from unlearn.storage.hashing import file_sha256
from unlearn.storage.hold import Hold, Lost
from unlearn.storage.lock import Busy, FolderLock

PACKAGES = ("lm_eval", "tokenizers", "torch", "transformers")  # whose versions are in the key of cached answers
POLL_S = 2.0  # seconds between looks at the answers that another process is computing


@dataclass(frozen=True)
class Unlearned:
    """An unlearned model to be evaluated.

    Args:
        delta: its delta.safetensors.
        partial: the folder for the journals while it is not finished.
        hold: on the folder in which `partial` is.
        report: is called with the progress. What it raises ends the evaluation.
    """

    delta: Path
    partial: Path
    hold: Hold
    report: Report = lambda *_: None


class Evaluator:
    """Asks models all questions of a suite. The model is loaded when it is first asked.

    Args:
        model_hash: of `source`, see `checkpoint_fingerprint`; part of the key of cached answers.
        cache: the folder in which all runs share the base model's answers.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: PreTrainedTokenizerBase,
        suite: Suite,
        *,
        model_hash: str,
        tokens_per_batch: int,
        maxlogit: MaxLogitPlan,
        cache: Path,
    ) -> None:
        self.suite = suite
        self._source, self._tokenizer, self._model_hash = source, tokenizer, model_hash
        self._tokens_per_batch, self._maxlogit, self._cache = tokens_per_batch, maxlogit, cache
        self._base: Answers | None = None

    def asking(self, suite: Suite) -> Evaluator:
        """An evaluator with the questions of a course, without MaxLogit, that shares the model in memory."""
        _ = self._model  # loaded before the copy
        other = copy.copy(self)
        other.suite, other._maxlogit, other._base = suite, MaxLogitPlan(), None
        return other

    def evaluate_base(self) -> Answers:
        """Ask the base model."""
        return self._base_answers([])

    def evaluate(self, models: Sequence[Unlearned]) -> list[Answers]:
        """Ask unlearned models together, ask the base model, and compare each with it: answers of both models.

        Raises UserError if a delta does not fit the model.
        """
        # Before the base model, whose answers another process may be computing at the same time.
        parts, _ = in_batches(self._ask_unlearned, models, len(models))  # smaller groups, if memory runs out
        base = self._base_answers(models)
        return [self._compared(base, own) for part in parts for own in part]

    def _compared(self, base: Answers, unlearned: Answers) -> Answers:
        own = with_agreement(base, unlearned, self.suite)
        return Answers(base.scores + own.scores + against_base(base, own, self.suite), base.samples + own.samples)

    def _weights(self, delta: Path) -> dict[str, Tensor]:
        weights, metadata = load_delta(delta)
        check_delta(self._model, weights, metadata)
        return weights

    def _ask_unlearned(self, models: Sequence[Unlearned]) -> list[Answers]:
        group = ModelGroup(self._model, (self._weights(model.delta) for model in models))
        keys = [file_sha256(model.delta) for model in models]
        pairs = zip(models, keys, strict=True)
        journals = [Journals(model.partial, key, model.report, model.hold) for model, key in pairs]
        return self._ask("unlearned", group, journals)

    def _ask_base(self, cached: CachedAnswers, hold: Hold, report: Report) -> Answers:
        journals = Journals(cached.partial, report=report, hold=hold)
        return self._ask("base", ModelGroup(self._model), [journals])[0]

    def _base_answers(self, models: Sequence[Unlearned]) -> Answers:
        """The base model's answers, from the cache if they are there. The progress is reported to all of `models`.

        If another process is computing them, wait for it; if that process dies, compute the rest here.
        """

        def report(phase: str, done: int, total: int) -> None:
            for model in models:
                model.report(phase, done, total)

        if self._base is None:
            self._base = self._cached_or_asked(CachedAnswers(self._cached_place()), report)
        return self._base

    def _cached_or_asked(self, cached: CachedAnswers, report: Report) -> Answers:
        reported = False
        while (answers := cached.load()) is None:
            try:
                with FolderLock(cached.folder) as lock:
                    if cached.load() is None:
                        cached.save(self._ask_base(cached, lock, report), lock)
            except Busy as busy:
                if not reported:
                    say(f"Waiting for the base model's answers: {busy}")
                reported = True
                time.sleep(POLL_S)
            except Lost as lost:  # another process asks the base model now; if it is the run that was lost, it ends
                if lost.folder != cached.folder:
                    raise
        return answers

    @cached_property
    def _model(self) -> PreTrainedModel:
        return load_whole(self._source)

    def _ask(self, label: str, group: ModelGroup, journals: list[Journals]) -> list[Answers]:
        return evaluate(
            group,
            self._tokenizer,
            self.suite,
            label=label,
            tokens_per_batch=self._tokens_per_batch,
            maxlogit=self._maxlogit,
            journals=journals,
        )

    def _cached_place(self) -> Path:
        key = {
            **states_key(self._source, self._model_hash, self._tokenizer),
            "questions": self.suite.hashes,
            "samples": SCHEMA.names,  # what an earlier version kept may lack what a comparison needs
            "maxlogit": asdict(self._maxlogit),
            "tokens_per_batch": self._tokens_per_batch,  # other batches round otherwise, bfloat16 visibly
            "packages": {name: version(name) for name in PACKAGES},
            "version": RESULTS_VERSION,
        }
        return cache_place(self._cache, "base", key)
