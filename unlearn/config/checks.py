"""Checks beyond types: ranges, choices, and conditions between keys.

Each check yields a sentence for every problem: which key, what was given, what is allowed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, is_dataclass
from functools import partial
from typing import Any

from omegaconf import MISSING

from unlearn.arguments import SPAN, check_choice, check_name, check_number
from unlearn.config.compose import attack_names
from unlearn.config.schema import CHECK, Config, DataConfig, TopicConfig
from unlearn.errors import UserError, nearest
from unlearn.methods.make import make_method
from unlearn.methods.rna import RNA
from unlearn.records.names import QUERIES, is_asked

SIZE = re.compile(r"\d+(\.\d+)?[KMG]i?B")


def _ranges(c: Config) -> Iterator[str]:
    """Values outside the ranges of the schema."""
    yield from _of_fields(c, "")
    if len(c.train.betas) != 2 or not all(0 <= b < 1 for b in c.train.betas):
        yield f"train.betas={c.train.betas} is not allowed: it must be two numbers in [0, 1)."


def _of_fields(value: Any, key: str) -> Iterator[str]:
    """The problems of a dataclass's fields, and of all dataclasses in it."""
    inside = {f.name: (getattr(value, f.name), f.metadata.get(CHECK)) for f in fields(value)}
    for name, (part, check) in inside.items():
        for item in part if isinstance(part, list) else [part]:
            if check is not None and item not in (None, MISSING):
                yield from _problem(check, f"{key}{name}", item)
        if is_dataclass(part):
            yield from _of_fields(part, f"{key}{name}.")
    for name, topic in value.topics.items() if isinstance(value, DataConfig) else ():
        yield from _of_fields(topic, f"{key}topics.{name}.")


def _problem(check: Callable[..., None], key: str, value: object, *allowed: Any) -> Iterator[str]:
    """The sentence of a check that fails."""
    try:
        check(key, value, *allowed)
    except UserError as error:
        yield str(error)


def _names(c: Config) -> Iterator[str]:
    """Names that are parts of paths."""
    names = {"model.name": c.model.name, "method.name": c.method.get("name"), "data.name": c.data.name}
    names |= {"eval.name": c.eval.name} | {f"eval.tasks: {role}": role for role in c.eval.roles}
    names |= {f"data.topics: {topic}": topic for topic in c.data.topics}
    for key, name in names.items():
        if name is None:
            yield f"{key}: no value was given."
        else:
            yield from _problem(check_name, key, name)


def _alpha(c: Config) -> Iterator[str]:
    values = {"loss.alpha": c.loss.alpha}
    if isinstance(c.loss.alpha, dict):
        values = {f"loss.alpha.{topic}": value for topic, value in c.loss.alpha.items()}
        for topic in (topic for topic in c.data.use or c.data.topics if topic not in c.loss.alpha):
            yield f"loss.alpha has no value for topic {topic!r}: give one number, or one for each topic."
    for key, value in values.items():
        yield from _problem(partial(check_number, at_least=0), key, value)


def _alpha_of_unknown_topics(c: Config) -> Iterator[str]:
    # A model's default may name topics that this data configuration lacks.
    is_default = c.model.methods.get(str(c.method.get("name")), {}).get("alpha") == c.loss.alpha
    if is_default or not isinstance(c.loss.alpha, dict):
        return
    for topic in c.loss.alpha.keys() - c.data.topics.keys():
        allowed = ", ".join(c.data.topics)
        yield f"loss.alpha: unknown topic {topic!r}.{nearest(str(topic), c.data.topics)} Allowed: {allowed}."


def _attacks(c: Config) -> Iterator[str]:
    for name in c.attacks:
        yield from _problem(check_choice, "attacks", name, attack_names())
    if c.attacks and c.model.device == "balanced":
        yield "attacks need the model on one device, and model.device=balanced. Set model.device=auto, for example."
    if c.attacks and not c.eval.roles:
        yield "attacks need an evaluation, but eval.tasks and eval.texts.corpora are empty."


def _max_memory(c: Config) -> Iterator[str]:
    if c.model.max_memory is None:
        return
    if c.model.device != "balanced":
        yield f"model.max_memory needs model.device=balanced, but model.device={c.model.device}."
    for device, size in c.model.max_memory.items():
        if not (str(device).isdecimal() or device == "cpu") or not SIZE.fullmatch(size):
            yield (
                f"model.max_memory={{{device}:{size}}} is not allowed: it must map GPU numbers, or cpu, to sizes, e.g. "
                "{0:40GiB,cpu:100GiB}. The rest of the model goes to the disk."
            )


def _chat(c: Config) -> Iterator[str]:
    if c.eval.system_instruction is not None and not c.eval.chat_template:
        yield "eval.system_instruction needs eval.chat_template=true: without a chat there is no system message."


def _roles_and_queries(c: Config) -> Iterator[str]:
    for query, roles in c.eval.asked_of.items():
        yield from _problem(check_choice, "eval.asked_of", query, QUERIES)
        for role in roles:
            yield from _problem(check_choice, f"eval.asked_of.{query}", role, [*c.eval.roles])
    for query in c.eval.maxlogit.queries:
        yield from _problem(check_choice, "eval.maxlogit.queries", query, c.eval.queries)
    for role in c.eval.maxlogit.roles:
        yield from _problem(check_choice, "eval.maxlogit.roles", role, [*c.eval.roles])


def _span_fits(c: Config) -> Iterator[str]:
    lowest, highest = SPAN - 1, c.model.num_layers - 1
    if not lowest <= c.model.layer <= highest:
        yield (
            f"model.layer={c.model.layer} is not allowed: layers l-2, l-1 and l are trained and model "
            f"{c.model.name!r} has layers 0 to {highest}, so it must be in {lowest}..{highest}."
        )


def _trained_matrices(c: Config) -> Iterator[str]:
    if c.model.parameters == []:
        yield "model.parameters=[] is not allowed: name at least one matrix, or null for the MLP's down projection."


def _published(c: Config) -> Iterator[str]:
    if c.method.get("published") is True and c.loss.mask != "none":
        yield (
            f"method.published=true needs loss.mask=none, but loss.mask={c.loss.mask}. Set loss.mask=none or "
            "method.published=false."
        )


def _method_and_rna(c: Config) -> Iterator[str]:
    """Problems that the constructors of RNA and of the method's class report. A user's own class is imported."""
    rna = RNA(0.0)
    try:
        rna = RNA(**asdict(c.rna))
    except UserError as error:
        yield f"rna.{error}"
    try:
        make_method(c.method, rna)
    except UserError as error:
        yield str(error)


def _no_topics(c: Config) -> Iterator[str]:
    if not c.data.topics:
        yield (
            f"data.topics: data={c.data.name} has no topics. Give at least one, for example "
            "'+data.topics.bio={forget: bio.jsonl, retain: wiki.txt, max_length: 512}'."
        )


def _topics(c: Config) -> Iterator[str]:
    if c.data.use == []:
        yield "data.use=[] is not allowed: name at least one topic, or null for all."
    for name in c.data.use or []:
        if name not in c.data.topics:
            allowed = ", ".join(c.data.topics)
            yield f"data.use: unknown topic {name!r}.{nearest(name, c.data.topics)} Allowed: {allowed}."
    names = [f.name for f in fields(TopicConfig)]
    for name, topic in c.data.topics.items():
        for field in fields(TopicConfig):
            value = getattr(topic, field.name)
            if value == MISSING:
                yield f"data.topics.{name}.{field.name}: no value was given. The keys of a topic: {', '.join(names)}."


def _topics_twice(c: Config) -> Iterator[str]:
    for name, count in Counter(c.data.use).items():
        if count > 1:
            yield f"data.use names topic {name!r} {count} times. Steps take the topics in turn: name each topic once."


def _forget_tokens(c: Config) -> Iterator[str]:
    tokens, controls = c.eval.forget_tokens, c.eval.control_tokens
    needed = {"perturbed", *(["control"] if controls is None else [])} & set(c.eval.queries)
    if controls is not None and not isinstance(controls, str) and not (_is_list_of_words(controls) and controls):
        yield f"eval.control_tokens={controls} is not allowed: it must be a list of words, a file, a folder, or null."
    if isinstance(tokens, str):
        topic = tokens.removeprefix("corpus:")
        if topic != tokens and topic not in c.data.topics:
            allowed = ", ".join(c.data.topics)
            yield f"eval.forget_tokens={tokens}: unknown topic.{nearest(topic, c.data.topics)} Allowed: {allowed}."
    elif not _is_list_of_words(tokens):
        allowed = "a list of words, a file, a folder, or corpus:TOPIC"
        yield f"eval.forget_tokens={tokens} is not allowed: it must be {allowed}."
    elif not tokens and needed:
        yield f"eval.forget_tokens is empty: {needed.pop()} queries need at least one, e.g. [SARS-CoV-2]."


def _is_list_of_words(tokens: Any) -> bool:
    return isinstance(tokens, list) and all(isinstance(token, str) and token.strip() for token in tokens)


def _asks_what_was_taught(c: Config) -> Iterator[str]:
    if c.eval.for_model not in (None, c.model.name):
        yield (
            f"eval={c.eval.name} asks about facts that only model={c.eval.for_model} was taught, but "
            f"model.name={c.model.name}. Choose another evaluation: eval=jsonl (held-out documents of data=jsonl), "
            "real, quick, none, ... To ask these questions anyway, set eval.for_model=null."
        )


def _asked_in_some_query(c: Config) -> Iterator[str]:
    if c.eval.roles and not c.eval.queries:
        yield "eval.queries=[] asks none of eval.tasks and eval.texts. Set eval.queries=[default], for example."


def _held_out(c: Config) -> Iterator[str]:
    last, held_out = c.eval.texts.last, c.data.held_out
    if last == 0:
        yield f"data.held_out=0 keeps back no documents for eval={c.eval.name}. Add eval=none, or another evaluation."
    if last is not None and last > held_out and c.eval.name == c.data.name:
        yield f"eval.texts.last={last} exceeds data.held_out={held_out}: training would use some of these texts."
    if last is not None and c.data.chat_template and c.eval.name == c.data.name:
        yield (
            f"eval={c.eval.name} measures texts, but the documents are dialogues (data.chat_template=true). Choose "
            "another evaluation, e.g. eval=none."
        )


def _subset(c: Config) -> Iterator[str]:
    if c.eval.limit is not None and c.eval.subset is not None:
        yield "eval.limit and eval.subset are both set. Set one of them to null."


def _course(c: Config) -> Iterator[str]:
    measured = c.eval.texts.corpora or (c.eval.every_questions and c.eval.tasks)
    if c.eval.every is not None and not measured:
        yield (
            f"eval.every={c.eval.every}: there is nothing to measure. Give held-out texts (eval=real, "
            "eval.texts.corpora), or set eval.every_questions, the number of questions per role."
        )


def _max_logit(c: Config) -> Iterator[str]:
    plan = c.eval.maxlogit
    for role in plan.roles if plan.tokens else ():
        if not c.eval.roles.get(role):
            yield (
                f"eval.maxlogit.roles names role {role}, which has no tasks (eval.tasks.{role}). Leave it out; "
                "eval.maxlogit.roles=[] turns MaxLogit off."
            )
        for query in plan.queries:
            if not is_asked(c.eval.asked_of, query, role):
                yield f"eval.maxlogit: {query} queries are not asked of role {role} (eval.asked_of.{query})."


CHECKS = (
    _ranges,
    _names,
    _alpha,
    _roles_and_queries,
    _span_fits,
    _trained_matrices,
    _topics,
    _forget_tokens,
    _asks_what_was_taught,
    _asked_in_some_query,
    _held_out,
    _subset,
    _course,
    _max_logit,
    _attacks,
    _chat,
    _max_memory,
    _alpha_of_unknown_topics,
    _published,
    _topics_twice,
)
# Only for a new training. Reading a finished run must not import code that the run's folder names, and the texts of an
# adopted checkpoint may be unknown.
CHECKS_OF_TRAINING = (_method_and_rna, _no_topics)
