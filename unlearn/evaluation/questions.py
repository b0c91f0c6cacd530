"""What a configuration asks: the words of each kind of query, and lm-eval's tasks and held-out texts with them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import AutoModel, PreTrainedTokenizerBase

from unlearn.config.identity import RESULTS_VERSION
from unlearn.config.schema import Config, EvalConfig
from unlearn.data.corpora import Reading, check_rows, documents, warn_of_unknown
from unlearn.errors import UserError
from unlearn.evaluation.cache import cache_place
from unlearn.evaluation.chat import Chat
from unlearn.evaluation.ngrams import embedded, in_context, rank_ngrams
from unlearn.evaluation.suite import Suite, load_suite
from unlearn.evaluation.texts import load_passages
from unlearn.evaluation.tokens import control_tokens, corpus_tokens, read_tokens, token_count
from unlearn.models.architectures import context_length
from unlearn.models.cutting import CutModel
from unlearn.models.fingerprint import checkpoint_fingerprint, states_key
from unlearn.models.loading import Source, load_config, load_tokenizer, load_up_to
from unlearn.records.names import NGRAM_QUERIES, text_tasks
from unlearn.screen import say
from unlearn.storage.files import write_json
from unlearn.storage.hashing import json_sha256

CACHE = "cache"  # below output_root


@dataclass(frozen=True)
class Questions:
    """The words that options become or texts get, by kind of query (none for "default"), and all tasks with them."""

    words: dict[str, list[str]]
    suite: Suite
    course: Suite | None = None  # what is asked every `eval.every` steps

    @property
    def word_hashes(self) -> dict[str, str]:
        """SHA-256 of the words of each kind of query that has some."""
        return {query: json_sha256(words) for query, words in self.words.items() if words}

    @property
    def text_hashes(self) -> dict[str, str]:
        """SHA-256 of the held-out texts of each task, without inserted words."""
        asked = {task: passages for tasks in self.suite.passages.values() for task, passages in tasks.items()}
        return {task: json_sha256([[p.id, p.plain, p.rest] for p in passages]) for task, passages in asked.items()}


def load_questions(config: Config, source: Source, tokenizer: PreTrainedTokenizerBase) -> Questions:
    """Load, perturb and build all questions. Raises UserError for unknown tasks and bad files."""
    e = config.eval
    chat = Chat.of(tokenizer, e.system_instruction, e.fewshot_as_multiturn) if e.chat_template else None
    words = query_words(config, source, tokenizer)
    suite = _suite(e, words, chat)
    for task, passages in suite.passages.get("default", {}).items():
        warn_of_unknown(tokenizer([p.beginning + p.rest for p in passages])["input_ids"], tokenizer, task)
    check_token_ids(suite, tokenizer, load_config(source).get_text_config().vocab_size)
    return Questions(words, suite, _course(e, words, chat))


def check_token_ids(suite: Suite, tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> None:
    """Raise UserError for a question or text with a token id beyond a model's `vocabulary` embeddings.

    If the tokenizer has no such id, nothing is tokenised.
    """
    if max(tokenizer.get_vocab().values()) < vocabulary:
        return
    asked = {
        f"eval.tasks: {name}, {query}": [request.args[:2] for request in task.instances]
        for query, tasks in suite.tasks.items()
        for name, task in tasks["tasks"].items()
    }
    asked |= {
        f"eval.texts: {name}, {query}": [passage.request.args for passage in passages]
        for query, of_tasks in suite.passages.items()
        for name, passages in of_tasks.items()
    }
    for place, arguments in asked.items():
        texts = ["".join(part for part in pair if isinstance(part, str)) for pair in arguments]
        check_rows({place: [ids for ids in tokenizer(texts)["input_ids"] if ids]}, vocabulary, first_counted=True)


def query_words(config: Config, source: Source, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[str]]:
    """The words that options become, for each kind of query; none for "default".

    Raises UserError for a bad file or an empty list. Queries by n-grams load the base model up to layer l. Their lists
    are cached below `output_root`.
    """
    words: dict[str, list[str]] = {}
    lists = _ngram_lists(config, source, tokenizer) if NGRAM_QUERIES.keys() & set(config.eval.queries) else {}
    for query in config.eval.queries:
        if query == "default":
            words[query] = []
        elif query in NGRAM_QUERIES:
            n, kind = NGRAM_QUERIES[query]
            words[query] = [entry["ngram"] for entry in lists[str(n)][kind]]
            if not words[query]:
                raise UserError(
                    f"eval.queries: {query} queries need n-grams of {n} words, and no document of the forget corpora "
                    f"(data.topics) has one within eval.ngrams.window={config.eval.ngrams.window} tokens."
                )
        else:
            words[query] = _control_tokens(config, tokenizer) if query == "control" else _forget_tokens(config, query)
    return words


def _control_tokens(config: Config, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    e, topics = config.eval, list(config.data.topics)
    if e.control_tokens is not None:
        return read_tokens(e.control_tokens, "eval.control_tokens")
    forget = _forget_tokens(config, "control")
    length = partial(token_count, tokenizer)
    return control_tokens(forget, _texts(config, "forget", topics), _texts(config, "retain", topics), e.seed, length)


def _forget_tokens(config: Config, query: str) -> list[str]:
    given = config.eval.forget_tokens
    if isinstance(given, str) and given.startswith("corpus:"):
        name = given.removeprefix("corpus:")
        tokens = corpus_tokens(_texts(config, "forget", [name]), _texts(config, "retain", [name]))
        if not tokens:
            raise UserError(
                f"eval.forget_tokens={given}: {query} queries need at least one word, and the topic's forget corpus "
                "has none that its retain corpus lacks."
            )
        return tokens
    return read_tokens(given)


def _corpora(config: Config, part: str, topics: Iterable[str]) -> dict[str, str]:
    """The path of each distinct corpus, and its configuration key."""
    return {getattr(config.data.topics[name], part): f"data.topics.{name}.{part}" for name in topics}


def _texts(config: Config, part: str, topics: Iterable[str], limit: int | None = None) -> Iterator[str]:
    """The documents of these topics' corpora, at most `limit` of each."""
    for path, key in _corpora(config, part, topics).items():
        yield from (text for text, _ in islice(documents(path, key, Reading.of(config.data)), limit))


def _ngram_lists(config: Config, source: Source, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The result of `rank_ngrams`, from the cache if it is there."""
    settings = config.eval.ngrams
    topics = config.data.use or list(config.data.topics)
    texts = partial(_texts, config, "forget", topics, settings.documents)
    encoder = None if settings.encoder is None else Source(settings.encoder, device=source.device)
    key = {
        "model": _loaded(source, tokenizer),
        "layer": config.model.layer,
        "encoder": None if encoder is None else _loaded(encoder, load_tokenizer(encoder)),
        "texts": _sha256(texts()),
        "settings": asdict(settings),
        "version": RESULTS_VERSION,
    }
    file = cache_place(Path(config.output_root) / CACHE, "ngrams", key).with_suffix(".json")
    if file.is_file():
        return json.loads(file.read_text())

    if encoder is None:
        cut = CutModel(load_up_to(source, config.model.layer), config.model.layer, parameters=config.model.parameters)
        window = min(settings.window, context_length(cut.model.config) or settings.window)
        measure = partial(in_context, cut=cut, tokenizer=tokenizer, window=window)
    else:
        model = AutoModel.from_pretrained(encoder.path).to(encoder.torch_device).eval()
        measure = partial(embedded, model=model, tokenizer=load_tokenizer(encoder), window=settings.window)
    say("Ranking the n-grams of the forget corpora by their similarity to their documents")
    lists = rank_ngrams(texts, measure, top=settings.top)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, lists)
    return lists


def _loaded(source: Source, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What determines a model's states."""
    return states_key(source, checkpoint_fingerprint(source), tokenizer)


def _sha256(texts: Iterable[str]) -> str:
    """The SHA-256 of texts, which are read one at a time."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()


def _course(e: EvalConfig, words: dict[str, list[str]], chat: Chat | None) -> Suite | None:
    """The first texts and a few of the questions, if `eval.every` wants them."""
    if e.every is None:
        return None
    documents_each = min(n for n in (e.texts.documents, e.every_documents) if n is not None)
    tasks = e.tasks if e.every_questions else {}
    few = replace(e, tasks=tasks, subset=e.every_questions, texts=replace(e.texts, documents=documents_each))
    return _suite(few, words, chat)


def _suite(e: EvalConfig, words: dict[str, list[str]], chat: Chat | None) -> Suite:
    passages = load_passages(e.texts, words, asked_of=e.asked_of, seed=e.seed, limit=e.limit)
    return load_suite(
        e.tasks,
        words,
        asked_of=e.asked_of,
        include_path=e.include_path,
        local_dir=e.local_dir,
        seed=e.seed,
        num_fewshot=e.num_fewshot,
        limit=e.limit,
        subset=e.subset,
        replaced=e.replaced,
        position=e.position,
        passages=passages,
        text_roles=text_tasks(e.texts.corpora),
        chat=chat,
    )
