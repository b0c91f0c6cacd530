"""The inputs of a run, loaded and checked before any weight: model, tokenizer, corpora, questions."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedTokenizerBase

from unlearn.config.schema import Config
from unlearn.data.batches import padding_id
from unlearn.data.corpora import Reading, Texts, Topic, check_rows, load_texts, load_topic
from unlearn.data.counting import documents_needed
from unlearn.errors import UserError
from unlearn.methods.make import needs_logits, own_code_hash
from unlearn.methods.randomness import generator
from unlearn.models.architectures import context_length, has_learned_positions, parameter_count
from unlearn.models.fingerprint import checkpoint_fingerprint, tokenizer_fingerprint
from unlearn.models.loading import BALANCED, Source, check_weights, load_config, load_tokenizer
from unlearn.models.memory import all_memory
from unlearn.screen import say
from unlearn.storage.files import check_writable
from unlearn.storage.hashing import json_sha256

if TYPE_CHECKING:  # where nothing is evaluated, lm-eval is not imported, which takes as long as all the rest
    from unlearn.evaluation.evaluator import Evaluator
    from unlearn.evaluation.questions import Questions


@dataclass(frozen=True)
class Inputs:
    """What a run reads. `topics` is empty where nothing is trained, `questions` is None where nothing is asked."""

    source: Source
    model_hash: str
    tokenizer: PreTrainedTokenizerBase
    questions: Questions | None
    topics: list[Topic] = field(default_factory=list)
    preferred: Texts | None = None  # texts that the method prefers to the forget texts

    @cached_property
    def hashes(self) -> dict[str, Any]:
        """The hashes that run.json keeps: the same configuration with other inputs is another run.

        What training is given are `rows`, the token ids after templates and cuts. Reports tell corpora apart by `data`.
        """
        return {
            "model": self.model_hash,
            "dtype": str(self.source.torch_dtype).removeprefix("torch."),  # model.dtype=auto depends on the device
            "tokenizer": tokenizer_fingerprint(self.tokenizer),
            "data": {topic.name: topic.sha256 for topic in self.topics},
            "rows": {t.name: {"forget": json_sha256(t.forget), "retain": json_sha256(t.retain)} for t in self.topics},
            "padding": self.pad_id if self.topics else None,
            "query_words": self.questions.word_hashes if self.questions else {},
            "questions": self.questions.suite.hashes if self.questions else {},
            "course": self.questions.course.hashes if self.questions and self.questions.course else {},
            "texts": self.questions.text_hashes if self.questions else {},
            "preferred": json_sha256(self.preferred.rows) if self.preferred else None,
        }

    @property
    def asked(self) -> Questions:
        """The questions of inputs that have some."""
        assert self.questions is not None
        return self.questions

    @property
    def lengths(self) -> list[list[int]]:
        """The longest text, in tokens, of each topic's forget, retain and, if there are any, preferred texts."""
        preferred = [self.preferred.rows] if self.preferred else []
        return [[max(map(len, rows)) for rows in (t.forget, t.retain, *preferred)] for t in self.topics]

    @property
    def pad_id(self) -> int:
        """The token id of padding."""
        return padding_id(self.tokenizer, load_config(self.source).get_text_config().vocab_size)


def hashes_of_run(config: Config, inputs: Inputs) -> dict[str, Any]:
    """What a run reads: inputs, which others may share, and the code of a user's own method."""
    code_hash = own_code_hash(config.method["_target_"])
    return inputs.hashes if code_hash is None else inputs.hashes | {"method": code_hash}


def load_inputs(config: Config, *, elsewhere: bool = False) -> Inputs:
    """The inputs of training and evaluation. Raises UserError for mistakes in the files that `config` names.

    With `elsewhere`, another machine will run the job, so device and memory are not checked.
    """
    source = Source.of(config.model)
    if elsewhere:
        source = replace(source, device="cpu")
    source.check_device()
    if source.torch_dtype == torch.float16:
        raise UserError(
            "model.dtype=float16 is not allowed in training, where small gradients would become zero. Set bfloat16 or "
            "float32; float16 is for evaluation only."
        )
    _check_layers(config, load_config(source).get_text_config().num_hidden_layers)
    tokenizer = load_tokenizer(source)
    topics = load_topics(config, tokenizer)
    preferred = _load_preferred(config, tokenizer)
    _check_rows(topics, preferred, config, source)
    _check_lengths(topics, preferred, source)
    if needs_logits(config.method) and config.model.device == BALANCED:
        raise UserError(
            f"model.device={BALANCED} is not allowed with method={config.method['name']}, which trains through the "
            "whole model on one device. Methods of representation misdirection need layers 0 to model.layer only."
        )
    whole = config.eval.roles or needs_logits(config.method)
    check_weights(source, None if whole else config.model.layer)
    if not elsewhere:
        check_memory(config, source)
    questions = _load_questions(config, source, tokenizer)
    return Inputs(source, checkpoint_fingerprint(source), tokenizer, questions, topics, preferred)


def load_evaluation_inputs(config: Config) -> Inputs:
    """The inputs of an evaluation without training.

    Also raises UserError if the configuration has no evaluation, and if nothing can be written below output_root.
    """
    check_writable(Path(config.output_root))  # the cache is there; a run may come from another machine
    source = Source.of(config.model)
    source.check_device()
    load_config(source)
    check_weights(source, None)
    check_memory(config, source)
    tokenizer = load_tokenizer(source)
    questions = _load_questions(config, source, tokenizer)
    if questions is None:
        ask = "choose an evaluation, e.g. eval=quick, or with model=toy eval=toy"
        raise UserError(f"eval.tasks and eval.texts are empty: {ask}.")
    return Inputs(source, checkpoint_fingerprint(source), tokenizer, questions)


def _load_questions(config: Config, source: Source, tokenizer: PreTrainedTokenizerBase) -> Questions | None:
    if not config.eval.roles:
        return None
    from unlearn.evaluation.questions import load_questions

    return load_questions(config, source, tokenizer)


def make_evaluator(config: Config, inputs: Inputs) -> Evaluator:
    """The evaluator of these inputs."""
    from unlearn.evaluation.evaluator import Evaluator
    from unlearn.evaluation.harness import MaxLogitPlan
    from unlearn.evaluation.questions import CACHE

    plan = config.eval.maxlogit
    return Evaluator(
        inputs.source,
        inputs.tokenizer,
        inputs.asked.suite,
        model_hash=inputs.model_hash,
        tokens_per_batch=config.eval.tokens_per_batch,
        maxlogit=MaxLogitPlan(list(plan.roles), list(plan.queries), plan.tokens),
        cache=Path(config.output_root) / CACHE,
    )


def _check_layers(config: Config, layers: int) -> None:
    if layers != config.model.num_layers:
        raise UserError(
            f"model.num_layers={config.model.num_layers}, but the model at {config.model.path} has {layers} layers. "
            f"Set model.num_layers={layers}, and choose model.layer and the coefficients for that model."
        )


def _check_rows(topics: list[Topic], preferred: Texts | None, config: Config, source: Source) -> None:
    rows = {f"data.topics.{topic.name}.forget": topic.forget for topic in topics}
    rows |= {f"data.topics.{topic.name}.retain": topic.retain for topic in topics}
    rows |= {"method.preferred": preferred.rows} if preferred else {}
    first_counted = config.loss.mask == "none" or (config.loss.mask == "padding" and not needs_logits(config.method))
    check_rows(rows, load_config(source).get_text_config().vocab_size, first_counted=first_counted)


def _check_lengths(topics: list[Topic], preferred: Texts | None, source: Source) -> None:
    """Raise UserError for texts longer than the context of a model with learned positions. Warn for other models."""
    config = load_config(source)
    context = context_length(config)
    if context is None:
        return
    lengths = {f"data.topics.{topic.name}.max_length": topic.forget for topic in topics}
    lengths |= {f"data.topics.{topic.name}.retain_max_length": topic.retain for topic in topics}
    lengths |= {"method.preferred": preferred.rows} if preferred else {}
    for key, rows in lengths.items():
        if (longest := max(map(len, rows))) > context:
            message = f"{key}: a text has {longest} tokens, but the model's context is {context}."
            if not source.trust_remote_code and has_learned_positions(config):
                raise UserError(f"{message} Set max_length to at most {context}.")
            say(message)


def check_memory(config: Config, source: Source) -> None:
    """Raise UserError if the memory of the device cannot hold the whole model, which the evaluation needs.

    Models with their own code are not checked, because their code would have to run.
    """
    if not config.eval.roles or source.device == BALANCED or source.trust_remote_code:
        return
    needed = source.torch_dtype.itemsize * parameter_count(load_config(source))
    available = all_memory(source.torch_device)
    if needed > available:
        raise UserError(
            f"eval: the whole model takes {needed / 1e9:.1f} GB in {source.torch_dtype}, but {source.torch_device} has "
            f"{available / 1e9:.1f} GB. Set model.device={BALANCED} to spread it over all GPUs, the CPU and the disk, "
            "or eval=none to train only."
        )


def _load_preferred(config: Config, tokenizer: PreTrainedTokenizerBase) -> Texts | None:
    """The texts of `method.preferred`, cut like forget texts."""
    path = config.method.get("preferred")
    if path is None:
        return None
    longest = max(topic.max_length for topic in config.data.topics.values())
    documents = config.train.steps * config.train.batch_size
    reading = Reading.of(config.data, tokenizer)
    return load_texts(path, "method.preferred", tokenizer, max_length=longest, documents=documents, reading=reading)


def load_topics(config: Config, tokenizer: PreTrainedTokenizerBase) -> list[Topic]:
    """The topics of a configuration, with the texts that its training reads."""
    data = config.data
    names = data.use or list(data.topics)
    documents = documents_needed(config.train.steps, config.train.batch_size, len(names))
    if data.held_out:
        say(f"Training leaves out the last {data.held_out} documents of each corpus (data.held_out)")
    topics = [
        load_topic(
            name,
            data.topics[name].forget,
            data.topics[name].retain,
            tokenizer,
            max_length=data.topics[name].max_length,
            retain_max_length=data.topics[name].retain_max_length or data.topics[name].max_length,
            documents=documents,
            on_exhausted=data.on_exhausted,
            held_out=data.held_out,
            reading=Reading.of(data, tokenizer),
        )
        for name in names
    ]
    return [_shuffled(topic, config.seed) for topic in topics] if data.shuffle else topics


def _shuffled(topic: Topic, seed: int) -> Topic:
    """The same documents in an order that comes from the seed."""

    def drawn(part: str, rows: list[list[int]]) -> list[list[int]]:
        order = torch.randperm(len(rows), generator=generator(seed, "order", topic.name, part))
        return [rows[i] for i in order.tolist()]

    return replace(topic, forget=drawn("forget", topic.forget), retain=drawn("retain", topic.retain))
