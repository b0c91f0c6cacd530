"""What a configuration asks: the words of each kind of query, and lm-eval's tasks and held-out texts with them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from transformers import AutoModel, PreTrainedTokenizerBase

from unlearn.config.identity import RESULTS_VERSION
from unlearn.config.schema import Config, EvalConfig
from unlearn.data.corpora import Reading, check_rows, documents, warn_of_unknown
from unlearn.errors import UserError
from unlearn.evaluation.cache import cache_place
from unlearn.evaluation.chat import Chat
from unlearn.evaluation.ngrams import Embedder, InContext, Reader, mean_state, rank_ngrams
from unlearn.evaluation.suite import Suite, load_suite
from unlearn.evaluation.texts import load_passages
from unlearn.evaluation.tokens import control_tokens, corpus_tokens, read_tokens, token_count
from unlearn.models.architectures import context_length
from unlearn.models.cutting import CutModel
from unlearn.models.fingerprint import checkpoint_fingerprint, states_key
from unlearn.models.loading import Source, load_config, load_tokenizer, load_up_to
from unlearn.records.names import NGRAM_QUERIES, text_tasks
from unlearn.records.ngrams import Sizes, as_json, read_ngrams
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
    ngrams: Sizes = field(default_factory=dict)  # the lists of n-grams, where queries need them

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
    ngrams = ngram_lists(config, source, tokenizer)
    words = query_words(config, tokenizer, ngrams)
    suite = _suite(e, words, chat)
    for task, passages in suite.passages.get("default", {}).items():
        warn_of_unknown(tokenizer([p.beginning + p.rest for p in passages])["input_ids"], tokenizer, task)
    check_token_ids(suite, tokenizer, load_config(source).get_text_config().vocab_size)
    return Questions(words, suite, _course(e, words, chat), ngrams)


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


def query_words(config: Config, tokenizer: PreTrainedTokenizerBase, ngrams: Sizes) -> dict[str, list[str]]:
    """The words that options become, for each kind of query; none for "default". `ngrams` has those of n-grams.

    Raises UserError for a bad file or an empty list.
    """
    words: dict[str, list[str]] = {}
    for query in config.eval.queries:
        if query == "default":
            words[query] = []
        elif query in NGRAM_QUERIES:
            n, kind = NGRAM_QUERIES[query]
            words[query] = [entry.ngram for entry in ngrams[str(n)].of_kind(kind)]
            if not words[query]:
                raise UserError(
                    f"eval.queries: {query} queries need n-grams of {n} words, and no document of the forget corpora "
                    f"(data.topics) has one within eval.ngrams.window={config.eval.ngrams.window} tokens that "
                    f"eval.ngrams.form={config.eval.ngrams.form} allows."
                )
            if len(words[query]) < config.eval.ngrams.top:
                say(f"{query} queries: the forget corpora give {len(words[query])} n-grams (eval.ngrams.top).")
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


def ngram_lists(config: Config, source: Source, tokenizer: PreTrainedTokenizerBase) -> Sizes:
    """The lists of n-grams; none if no query needs them. They are cached below `output_root`.

    Where they are not there yet, the base model is loaded up to layer l.
    """
    if not NGRAM_QUERIES.keys() & set(config.eval.queries):
        return {}
    settings = config.eval.ngrams
    topics = config.data.use or list(config.data.topics)
    forget, retain = (partial(_texts, config, part, topics, settings.documents) for part in ("forget", "retain"))
    is_centred = settings.form == "centred"
    encoder = None if settings.encoder is None else Source(settings.encoder, device=source.device)
    key = {
        "model": _loaded(source, tokenizer),
        "layer": config.model.layer,
        "encoder": None if encoder is None else _loaded(encoder, load_tokenizer(encoder)),
        "texts": _sha256(forget()),
        "retained": _sha256(retain()) if is_centred else None,
        "settings": asdict(settings),
        "version": RESULTS_VERSION,
    }
    file = cache_place(Path(config.output_root) / CACHE, "ngrams", key).with_suffix(".json")
    if file.is_file():
        return read_ngrams(file)

    reader = _embedder(config, encoder) if encoder else _reader_in_context(config, source, tokenizer)
    say("Ranking the n-grams of the forget corpora by their similarity to their documents")
    centre_D = mean_state(chain(forget(), retain()), reader) if is_centred else None
    measure = partial(reader.measure, centre_D=centre_D)
    lists = rank_ngrams(forget, measure, top=settings.top, one_of_a_document=is_centred)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, as_json(lists))
    return lists


def _reader_in_context(config: Config, source: Source, tokenizer: PreTrainedTokenizerBase) -> Reader:
    settings, layer = config.eval.ngrams, config.model.layer
    cut = CutModel(load_up_to(source, layer), layer, parameters=config.model.parameters)
    window = min(settings.window, context_length(cut.model.config) or settings.window)
    return InContext(cut, tokenizer, window, skipped=1 if settings.form == "centred" else 0)


def _embedder(config: Config, encoder: Source) -> Reader:
    model = AutoModel.from_pretrained(encoder.path).to(encoder.torch_device).eval()
    return Embedder(model, load_tokenizer(encoder), config.eval.ngrams.window)


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
        part=e.questions,
        replaced=e.replaced,
        position=e.position,
        passages=passages,
        text_roles=text_tasks(e.texts.corpora),
        chat=chat,
    )
