"""From a configuration to what is asked, and the base model's answers, computed once and kept for every run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import AutoModel, PreTrainedTokenizerBase

from unlearn.config import NGRAM_QUERIES, SPAN, Config
from unlearn.cut import CutModel
from unlearn.data import read_corpus, stream_corpus
from unlearn.evaluate.harness import Answers, MaxLogitPlan
from unlearn.evaluate.ngrams import embedded, in_context, rank_ngrams
from unlearn.evaluate.suite import Suite, load_suite
from unlearn.evaluate.tokens import control_tokens, corpus_tokens, read_forget_tokens
from unlearn.fingerprint import checkpoint_fingerprint
from unlearn.identity import RESULTS_VERSION
from unlearn.model import Source, load_tokenizer, load_up_to
from unlearn.run_folder import write_atomically, write_json
from unlearn.screen import say


def query_words(config: Config, source: Source, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[str]]:
    """For each kind of query the words that options become; none for "default".

    Raises UserError for a bad file or an empty list. Queries by n-grams load the base model up to layer l, once for
    each model and data: the lists are kept below `output_root`.
    """
    words: dict[str, list[str]] = {}
    lists = _ngram_lists(config, source, tokenizer) if NGRAM_QUERIES.keys() & set(config.eval.queries) else {}
    for query in config.eval.queries:
        if query == "default":
            words[query] = []
        elif query in NGRAM_QUERIES:
            n, kind = NGRAM_QUERIES[query]
            words[query] = [entry["ngram"] for entry in lists[str(n)][kind]]
        else:
            forget = _forget_tokens(config)
            if query == "control":
                forget = control_tokens(forget, _texts(config, "forget"), _texts(config, "retain"))
            words[query] = forget
    return words


def _forget_tokens(config: Config) -> list[str]:
    given = config.eval.forget_tokens
    if isinstance(given, str) and given.startswith("corpus:"):
        name = given.removeprefix("corpus:")
        topic = config.data.topics[name]
        return corpus_tokens(stream_corpus(topic.forget), stream_corpus(topic.retain))
    return read_forget_tokens(given)


def _texts(config: Config, part: str) -> Iterator[str]:
    """All documents of all topics' corpora, each corpus once."""
    for path in dict.fromkeys(getattr(topic, part) for topic in config.data.topics.values()):
        yield from stream_corpus(path)


def _ngram_lists(config: Config, source: Source, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What `rank_ngrams` finds, read from the cache if it was found before."""
    settings = config.eval.ngrams
    topics = [config.data.topics[name] for name in config.data.use or config.data.topics]
    corpora = list(dict.fromkeys(topic.forget for topic in topics))
    key = {
        "model": checkpoint_fingerprint(source),
        "layer": config.model.layer,
        "corpora": [read_corpus(path, "data.topics").sha256 for path in corpora],
        "settings": asdict(settings),
        "version": RESULTS_VERSION,
    }
    file = _cache(config, "ngrams", key).with_suffix(".json")
    if file.is_file():
        return json.loads(file.read_text())

    def documents() -> Iterator[str]:
        for path in corpora:
            yield from islice(stream_corpus(path), settings.documents)

    if settings.encoder is None:
        cut = CutModel(load_up_to(source, config.model.layer), config.model.layer, SPAN, config.model.parameters)
        measure = partial(in_context, cut=cut, tokenizer=tokenizer, window=settings.window)
    else:
        encoder = Source(settings.encoder, device=source.device)
        model = AutoModel.from_pretrained(settings.encoder).to(encoder.torch_device).eval()
        measure = partial(embedded, model=model, tokenizer=load_tokenizer(encoder), window=settings.window)
    say("Ranking the n-grams of the forget corpora by their similarity to their documents")
    lists = rank_ngrams(documents, measure, top=settings.top)
    write_json(file, lists)
    return lists


def make_suite(config: Config, words: dict[str, list[str]]) -> Suite:
    """All questions, built."""
    e = config.eval
    return load_suite(
        e.tasks,
        words,
        include_path=e.include_path,
        local_dir=e.local_dir,
        seed=e.seed,
        num_fewshot=e.num_fewshot,
        limit=e.limit,
        subset=e.subset,
        replaced=e.replaced,
        position=e.position,
    )


def maxlogit_plan(config: Config) -> MaxLogitPlan:
    """What MaxLogit is measured of."""
    m = config.eval.maxlogit
    return MaxLogitPlan(list(m.roles), list(m.queries), m.tokens)


class BaseAnswers:
    """The base model's answers to a suite, in a folder named by the hash of all that determines them."""

    def __init__(self, config: Config, source: Source, suite: Suite) -> None:
        key = {
            "model": checkpoint_fingerprint(source),
            "dtype": str(source.torch_dtype),
            "device": source.torch_device.type,
            "attention": source.attn_implementation,
            "questions": suite.sha256(),
            "maxlogit": asdict(maxlogit_plan(config)),
            "lm_eval": version("lm_eval"),
            "version": RESULTS_VERSION,
        }
        self._folder = _cache(config, "base", key)

    def load(self) -> Answers | None:
        """What was kept, if anything was."""
        file = self._folder / "metrics.json"
        if not file.is_file():
            return None
        samples = self._folder / "samples"
        records = {
            str(f.relative_to(samples).with_suffix("")): [json.loads(line) for line in f.read_text().splitlines()]
            for f in sorted(samples.rglob("*.jsonl"))
        }
        others = {str(f.relative_to(samples)): f.read_bytes() for f in sorted(samples.rglob("*.parquet"))}
        return Answers(json.loads(file.read_text()), records, others)

    def keep(self, answers: Answers) -> None:
        """For the next run; the metrics last, since they say that all is there."""
        answers.write_samples(self._folder / "samples")
        write_atomically(self._folder / "metrics.json", json.dumps(answers.metrics, indent=2) + "\n")


def _cache(config: Config, kind: str, key: dict[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return Path(config.output_root) / "cache" / kind / digest
