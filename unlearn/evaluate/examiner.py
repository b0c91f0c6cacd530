"""One configuration's evaluation: what is asked, of the base model once for all runs, and of any delta on it."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from unlearn.config.identity import RESULTS_VERSION
from unlearn.config.schema import Config
from unlearn.evaluate.harness import Answers, MaxLogitPlan, against_base, evaluate
from unlearn.evaluate.journal import Notes, Report
from unlearn.evaluate.questions import cache_place, make_suite, query_words
from unlearn.evaluate.roles import ROLES
from unlearn.models.delta import applied, load_delta
from unlearn.models.fingerprint import checkpoint_fingerprint, text_fingerprint
from unlearn.models.loading import Source, load_whole
from unlearn.screen import say
from unlearn.storage.files import remove_scratch, write_json
from unlearn.storage.lock import Busy, FolderLock

POLL_S = 2.0  # seconds between looks at what another process is computing


@dataclass(frozen=True)
class Result:
    """Metrics of one or two models, their answers, and which tasks belong to which role."""

    metrics: dict[str, float]
    answers: list[Answers]
    roles: dict[str, list[str]]

    def write_samples(self, folder: Path) -> None:
        """Every answer and ROLES, beside those of an earlier evaluation."""
        for answers in self.answers:
            answers.write_samples(folder)
        file = folder / ROLES
        before = json.loads(file.read_text()) if file.is_file() else {}
        write_json(file, {r: sorted({*before.get(r, ()), *self.roles.get(r, ())}) for r in before | self.roles})


class Examiner:
    """Loads and builds all questions at once, before any weight is loaded; models only when they are asked.

    `words` are the words that options become, by kind of query. Raises UserError for unknown tasks and bad files.
    """

    def __init__(self, config: Config, source: Source, tokenizer: PreTrainedTokenizerBase) -> None:
        self._config, self._source, self._tokenizer = config, source, tokenizer
        self.words = query_words(config, source, tokenizer)
        self.suite = make_suite(config, self.words)
        m = config.eval.maxlogit
        self._maxlogit = MaxLogitPlan(list(m.roles), list(m.queries), m.tokens)
        self._base: Answers | None = None

    @property
    def word_hashes(self) -> dict[str, str]:
        """Hash of the words that options become, by kind of query."""
        return {query: text_fingerprint(words) for query, words in self.words.items() if words}

    @cached_property
    def _model(self) -> PreTrainedModel:
        return load_whole(self._source)

    def base(self, report: Report) -> Answers:
        """The base model's answers, from where an earlier run kept them if one did.

        Where another process is computing them just now, it is waited for; should it die, this one goes on.
        """
        if self._base is None:
            self._base = self._kept_or_asked(_Kept(self._place()), report)
        return self._base

    def _kept_or_asked(self, kept: _Kept, report: Report) -> Answers:
        told = False
        while (answers := kept.load()) is None:
            try:
                with FolderLock(kept.folder):
                    remove_scratch(kept.folder)
                    if kept.load() is None:
                        kept.keep(self._ask("base", Notes(kept.partial, report=report)))
            except Busy as busy:
                if not told:
                    say(f"Waiting for the base model's answers: {busy}")
                told = True
                time.sleep(POLL_S)
        return answers

    def examine(
        self, delta: Path | None = None, *, partial: Path | None = None, report: Report = lambda *_: None
    ) -> Result:
        """The base model and, with a delta, the unlearned one compared with it. Raises UserError for a bad delta.

        `partial` is a folder for what is scored until all is; `report` is told how far that is.
        """
        leaves = self.suite.leaves
        roles = {role: [leaf for name in asked for leaf in leaves[name]] for role, asked in self.suite.roles.items()}
        if delta is None:
            base = self.base(report)
            return Result(base.metrics, [base], roles)
        weights, metadata = load_delta(delta)
        with applied(self._model, weights, metadata):
            # Before the base model, which another process may be asking meanwhile.
            key = hashlib.sha256(delta.read_bytes()).hexdigest()
            unlearned = self._ask("unlearned", Notes(partial, key, report))
        base = self.base(report)
        metrics = base.metrics | unlearned.metrics | against_base(base, unlearned, self.suite)
        return Result(metrics, [base, unlearned], roles)

    def _ask(self, label: str, notes: Notes) -> Answers:
        return evaluate(
            self._model,
            self._tokenizer,
            self.suite,
            label=label,
            tokens_per_batch=self._config.eval.tokens_per_batch,
            maxlogit=self._maxlogit,
            notes=notes,
        )

    def _place(self) -> Path:
        """The folder of the base model's answers, named by the hash of all that determines them."""
        key = {
            "model": checkpoint_fingerprint(self._source),
            "dtype": str(self._source.torch_dtype),
            "device": self._source.torch_device.type,
            "attention": self._source.attn_implementation,
            "questions": self.suite.sha256(),
            "maxlogit": asdict(self._maxlogit),
            "lm_eval": version("lm_eval"),
            "version": RESULTS_VERSION,
        }
        return cache_place(self._config, "base", key)


@dataclass(frozen=True)
class _Kept:
    """Answers in a folder."""

    folder: Path

    @property
    def partial(self) -> Path:
        """What has been scored until all is."""
        return self.folder / "partial"

    def load(self) -> Answers | None:
        file = self.folder / "metrics.json"
        if not file.is_file():
            return None
        samples = self.folder / "samples"
        records = {
            str(f.relative_to(samples).with_suffix("")): [json.loads(line) for line in f.read_text().splitlines()]
            for f in sorted(samples.rglob("*.jsonl"))
        }
        others = {str(f.relative_to(samples)): f.read_bytes() for f in sorted(samples.rglob("*.parquet"))}
        return Answers(json.loads(file.read_text()), records, others)

    def keep(self, answers: Answers) -> None:
        """The metrics last, since they say that all is there."""
        answers.write_samples(self.folder / "samples")
        write_json(self.folder / "metrics.json", answers.metrics)
        shutil.rmtree(self.partial, ignore_errors=True)
