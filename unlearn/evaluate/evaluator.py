"""Evaluation of one configuration: the base model, once for all runs, and the unlearned model of any delta."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from unlearn.config.identity import RESULTS_VERSION
from unlearn.evaluate.cache import CachedAnswers, cache_place
from unlearn.evaluate.harness import Answers, MaxLogitPlan, against_base, evaluate
from unlearn.evaluate.journal import Journals, Report
from unlearn.evaluate.roles import ROLES
from unlearn.evaluate.suite import Suite
from unlearn.models.delta import applied, load_delta
from unlearn.models.loading import Source, load_whole
from unlearn.screen import say
from unlearn.storage.files import remove_scratch, write_json
from unlearn.storage.lock import Busy, FolderLock

POLL_S = 2.0  # seconds between looks at the answers that another process is computing


@dataclass(frozen=True)
class Result:
    """Metrics and answers of one or two models, and which tasks belong to which role."""

    metrics: dict[str, float]
    answers: list[Answers]
    roles: dict[str, list[str]]

    def write_samples(self, folder: Path) -> None:
        """Write every answer and ROLES. What an earlier evaluation left in the folder stays."""
        for answers in self.answers:
            answers.write_samples(folder)
        file = folder / ROLES
        before = json.loads(file.read_text()) if file.is_file() else {}
        write_json(file, {r: sorted({*before.get(r, ()), *self.roles.get(r, ())}) for r in before | self.roles})


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

    def evaluate(
        self, delta: Path | None = None, *, partial: Path | None = None, report: Report = lambda *_: None
    ) -> Result:
        """Ask the base model and, with a delta, the unlearned model, and compare the two.

        Args:
            delta: a delta.safetensors. Raises UserError if it does not fit the model.
            partial: a folder for the journals of an evaluation that is not finished.
            report: is called with the progress.
        """
        leaves = self.suite.leaves
        roles = {role: [leaf for name in asked for leaf in leaves[name]] for role, asked in self.suite.roles.items()}
        if delta is None:
            base = self._base_answers(report)
            return Result(base.metrics, [base], roles)
        weights, metadata = load_delta(delta)
        with applied(self._model, weights, metadata):
            # Before the base model, whose answers another process may be computing at the same time.
            key = hashlib.sha256(delta.read_bytes()).hexdigest()
            unlearned = self._ask("unlearned", Journals(partial, key, report))
        base = self._base_answers(report)
        metrics = base.metrics | unlearned.metrics | against_base(base, unlearned, self.suite)
        return Result(metrics, [base, unlearned], roles)

    def _base_answers(self, report: Report) -> Answers:
        """The base model's answers, from the cache if they are there.

        If another process is computing them, wait for it; if that process dies, compute the rest here.
        """
        if self._base is None:
            self._base = self._cached_or_asked(CachedAnswers(self._cached_place()), report)
        return self._base

    def _cached_or_asked(self, cached: CachedAnswers, report: Report) -> Answers:
        told = False
        while (answers := cached.load()) is None:
            try:
                with FolderLock(cached.folder):
                    remove_scratch(cached.folder)
                    if cached.load() is None:
                        cached.save(self._ask("base", Journals(cached.partial, report=report)))
            except Busy as busy:
                if not told:
                    say(f"Waiting for the base model's answers: {busy}")
                told = True
                time.sleep(POLL_S)
        return answers

    @cached_property
    def _model(self) -> PreTrainedModel:
        return load_whole(self._source)

    def _ask(self, label: str, journals: Journals) -> Answers:
        return evaluate(
            self._model,
            self._tokenizer,
            self.suite,
            label=label,
            tokens_per_batch=self._tokens_per_batch,
            maxlogit=self._maxlogit,
            journals=journals,
        )

    def _cached_place(self) -> Path:
        key = {
            "model": self._model_hash,
            "dtype": str(self._source.torch_dtype),
            "device": self._source.torch_device.type,
            "attention": self._source.attn_implementation,
            "questions": self.suite.sha256(),
            "maxlogit": asdict(self._maxlogit),
            "lm_eval": version("lm_eval"),
            "version": RESULTS_VERSION,
        }
        return cache_place(self._cache, "base", key)
