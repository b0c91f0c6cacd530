"""The typed schema of the configuration: every key, its type and its range.

YAML under conf/ gives the values. A default in the schema is for a user's own file that leaves the key out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from typing import Any

from omegaconf import MISSING

from unlearn.arguments import (
    MASKS,
    OPTIMIZERS,
    PRECISIONS,
    SCHEDULES,
    check_choice,
    check_integer,
    check_number,
    is_number,
)
from unlearn.methods.rna import RETAIN_TARGET
from unlearn.records.names import ALL, CHOOSING, JUDGING, QUERIES, text_tasks

# Keys that must be equal for runs that share a process.
SHARED = (
    "model",
    "data",
    "eval",
    "loss.mask",
    "method.preferred",
    "train.steps",
    "train.batch_size",
    "train.log_every",
    "train.checkpoint_every",
    "train.recompute",
)
FEWEST_WORDS = 8  # of a held-out text
CHECK = "check"  # in a field's metadata: a function of the key and the value that raises UserError


def at_least(bound: int, default: Any = MISSING) -> Any:
    """A field for an integer of at least `bound`."""
    return field(default=default, metadata={CHECK: partial(check_integer, at_least=bound)})


def number(*, above: float | None = None, at_least: float | None = None) -> Any:
    """A field for a finite number in this range."""
    return field(default=MISSING, metadata={CHECK: partial(check_number, above=above, at_least=at_least)})


def one_of(*names: str, default: Any = MISSING) -> Any:
    """A field for one of these names, or a list of them."""
    return field(default=default, metadata={CHECK: partial(check_choice, allowed=names)})


@dataclass
class PresetConfig:
    """Values that differ between the default and the published code. Other keys refer to them."""

    name: str = MISSING
    mask: str = MISSING
    norm: str = MISSING
    optimizer: str = MISSING
    eps: float = MISSING
    precision: str = MISSING
    dtype: str = MISSING
    attn_implementation: str | None = MISSING
    cyber_retain_max_length: dict[str, int] = MISSING
    published: bool = MISSING


@dataclass
class ModelConfig:
    """A decoder language model, and the coefficients that depend on its scale."""

    name: str = MISSING
    path: str = MISSING
    revision: str | None = MISSING
    gguf_file: str | None = MISSING
    trust_remote_code: bool = MISSING
    attn_implementation: str | None = MISSING
    num_layers: int = MISSING
    dtype: str = one_of("auto", "float32", "bfloat16", "float16")
    device: str = MISSING
    max_memory: dict[Any, str] | None = None
    parameters: list[str] | None = MISSING
    layer: int = MISSING
    alpha: float = MISSING
    lr: float = MISSING
    methods: dict[str, dict[str, Any]] = MISSING
    grids: dict[str, str] = MISSING
    masks: dict[str, str] = field(default_factory=dict)  # preset -> its loss.mask for this model
    schedules: dict[str, str] = field(default_factory=dict)  # preset -> its train.schedule for this model


@dataclass
class RNAConfig:
    """Noise on the retain target (Eq. 8), or elsewhere as a placebo."""

    nu: float = MISSING
    scale: str = MISSING
    per: str = MISSING
    where: str = RETAIN_TARGET


@dataclass
class TopicConfig:
    """One topic's corpora; lengths in tokens."""

    forget: str = MISSING
    retain: str = MISSING
    max_length: int = at_least(1)
    retain_max_length: int | None = at_least(1, None)  # None: max_length


@dataclass
class DataConfig:
    """Corpora by topic; steps take the topics in turn, in the order of `use`."""

    name: str = MISSING
    topics: dict[str, TopicConfig] = MISSING
    use: list[str] | None = MISSING
    on_exhausted: str = one_of("error", "cycle")
    held_out: int = at_least(0, 0)
    text_column: str = "text"
    errors: str = one_of("error", "replace", default="error")
    chat_template: bool = False
    shuffle: bool = False


@dataclass
class LossConfig:
    """Weights and positions of the losses (Eq. 1)."""

    alpha: Any = MISSING  # a number, or one for each topic
    mask: str = one_of(*MASKS)

    def __post_init__(self) -> None:
        """Whole numbers become floats, as they are for keys of type float."""
        if isinstance(self.alpha, dict):
            self.alpha = {topic: as_float(value) for topic, value in self.alpha.items()}
        self.alpha = as_float(self.alpha)


@dataclass
class TrainConfig:
    """Algorithm 1 and its optimizer."""

    steps: int = at_least(1)
    batch_size: int = at_least(1)
    lr: float = number(above=0)
    schedule: str = one_of(*SCHEDULES, default="constant")
    betas: list[float] = MISSING
    optimizer: str = one_of(*OPTIMIZERS)
    eps: float = number(at_least=0)
    weight_decay: float = number(at_least=0)
    precision: str = one_of(*PRECISIONS)
    log_every: int = at_least(1)
    checkpoint_every: int | None = at_least(1)
    recompute: str = one_of("auto", "always", "never", default="auto")  # activation checkpointing
    force: bool = MISSING


@dataclass
class MaxLogitConfig:
    """MaxLogit (Eq. 11): the roles and queries that it is measured on, and the number of greedy tokens (0: off)."""

    roles: list[str] = MISSING
    queries: list[str] = MISSING
    tokens: int = at_least(0)


@dataclass
class NgramConfig:
    """Lists of n-grams by similarity to their document (section 6.7); for `form` see `unlearn.evaluation.ngrams`."""

    form: str = one_of("centred", "paper", default="centred")
    documents: int | None = at_least(1)
    window: int = at_least(1)
    top: int = at_least(1)
    encoder: str | None = MISSING


@dataclass
class TextConfig:
    """Held-out texts, and how words are inserted into them (`unlearn.evaluation.texts`)."""

    corpora: dict[str, dict[str, str]] = field(default_factory=dict)  # role -> name -> corpus, as in data.topics
    skip: int = at_least(0, 0)
    documents: int | None = at_least(1, None)
    last: int | None = at_least(0, None)
    words: int = at_least(FEWEST_WORDS, 80)
    place: str = one_of("start", "quarter", "random", default="quarter")
    inserted: int = at_least(1, 1)
    texts_per_word: int | None = at_least(1, None)
    text_column: str = "text"
    errors: str = one_of("error", "replace", default="error")


@dataclass
class EvalConfig:
    """lm-eval tasks and held-out texts by role, and which queries they are asked in."""

    name: str = MISSING
    for_model: str | None = None
    tasks: dict[str, list[str]] = MISSING
    include_path: str | None = MISSING
    local_dir: str | None = MISSING
    queries: list[str] = one_of(*QUERIES)  # noqa: RUF009
    asked_of: dict[str, list[str]] = field(default_factory=dict)  # query -> its roles; without an entry, all roles
    forget_tokens: Any = MISSING  # list of str, the path of a file with one a line or a folder of such, or corpus:TOPIC
    control_tokens: Any = None  # list of str, or such a path; None: words of the retain corpora
    replaced: int = at_least(1)
    position: str = one_of("random", "first", "last")
    seed: int = MISSING
    tokens_per_batch: int = at_least(1)
    num_fewshot: int = at_least(0)
    limit: int | None = at_least(1)
    subset: int | None = at_least(1)
    questions: str = one_of(ALL, CHOOSING, JUDGING, default=ALL)
    maxlogit: MaxLogitConfig = MISSING
    ngrams: NgramConfig = MISSING
    texts: TextConfig = field(default_factory=TextConfig)
    chat_template: bool = False
    system_instruction: str | None = None
    fewshot_as_multiturn: bool = True
    every: int | None = at_least(1, None)
    every_documents: int = at_least(1, 16)
    every_questions: int | None = at_least(1, None)

    @property
    def roles(self) -> dict[str, list[str]]:
        """The tasks of each role; held-out texts are tasks of the role ROLE_text."""
        return {**self.tasks, **text_tasks(self.texts.corpora)}


@dataclass
class TrackerConfig:
    """Where curves and metrics go, in addition to the run's folder."""

    name: str = one_of("wandb", "none")
    project: str | None = MISSING
    entity: str | None = MISSING
    mode: str = one_of("auto", "online", "offline")
    group: str | None = MISSING
    tags: list[str] = MISSING
    questions: bool = MISSING
    delta: bool = MISSING
    timeout_s: int = at_least(1)


@dataclass
class Config:
    """The whole configuration of a run."""

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
    attacks: list[str] = field(default_factory=list)  # of conf/attack, or all
    nu_found: dict[str, Any] | None = None  # how `rna.nu=auto` became a number (`unlearn.sweeps.auto_nu`)


def unshared(a: Config, b: Config) -> Iterator[str]:
    """The keys in which two configurations differ although runs of one process must agree in them.

    They are `SHARED`, and the seed if it determines the order of the documents.
    """
    keys = (*SHARED, "seed") if a.data.shuffle else SHARED
    return (key for key in keys if _value(a, key) != _value(b, key))


def _value(config: Config, key: str) -> Any:
    """The value of a dotted key; None for an argument that the method lacks."""
    group, _, name = key.partition(".")
    return config.method.get(name) if group == "method" else attrgetter(key)(config)


def as_float(value: Any) -> Any:
    """A number as a float; anything else as it is."""
    return float(value) if is_number(value) else value
