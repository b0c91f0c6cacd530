"""The typed schema of the configuration: every key and its type. YAML under conf/ gives the values, this file none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from omegaconf import MISSING

SPAN = 3  # trained layers: l-2, l-1, l (section 6.2)
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
DTYPES = ("auto", "float32", "bfloat16", "float16")
MASKS = ("padding", "padding_and_bos", "none")
NGRAM_QUERIES = {
    **{f"similarity-{kind}": (2, kind) for kind in ("most", "least", "mean")},
    **{f"ngram-{n}": (n, "most") for n in (2, 4, 8, 16)},
}  # query -> words of an n-gram, and which list of them
QUERIES = ("default", "perturbed", "control", *NGRAM_QUERIES)
POSITIONS = ("random", "first", "last")
FEWEST_WORDS = 8  # of a held-out text
PLACES = ("start", "quarter", "random")
OPTIMIZERS = ("adamw", "adamw_published")
SCHEDULES = ("constant", "linear")
RECOMPUTE = ("auto", "always", "never")


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
    """A decoder language model, and what belongs to its scale."""

    name: str = MISSING
    path: str = MISSING
    revision: str | None = MISSING
    gguf_file: str | None = MISSING
    trust_remote_code: bool = MISSING
    attn_implementation: str | None = MISSING
    compile: bool = False
    num_layers: int = MISSING
    dtype: str = MISSING
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
    held_out: int = 0
    text_column: str = "text"
    errors: str = "error"
    chat_template: bool = False
    shuffle: bool = False


@dataclass
class LossConfig:
    """Weights and positions of the losses (Eq. 1)."""

    alpha: Any = MISSING  # a number, or one for each topic
    mask: str = MISSING

    def __post_init__(self) -> None:
        """Whole numbers become floats, as they are for keys of type float."""
        if isinstance(self.alpha, dict):
            self.alpha = {topic: as_float(value) for topic, value in self.alpha.items()}
        self.alpha = as_float(self.alpha)


@dataclass
class TrainConfig:
    """Algorithm 1 and its optimizer."""

    steps: int = MISSING
    batch_size: int = MISSING
    lr: float = MISSING
    schedule: str = "constant"
    betas: list[float] = MISSING
    optimizer: str = MISSING
    eps: float = MISSING
    weight_decay: float = MISSING
    precision: str = MISSING
    log_every: int = MISSING
    checkpoint_every: int | None = MISSING
    recompute: str = "auto"  # activation checkpointing
    force: bool = MISSING


@dataclass
class MaxLogitConfig:
    """MaxLogit (Eq. 11): the roles and kinds of query it is measured on, and the number of greedy tokens (0: off)."""

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
class TextConfig:
    """Held-out texts, and how words are inserted into them (`unlearn.evaluate.texts`)."""

    corpora: dict[str, dict[str, str]] = field(default_factory=dict)  # role -> name -> corpus, as in data.topics
    skip: int = 0
    documents: int | None = None
    last: int | None = None
    words: int = 80
    place: str = "quarter"
    inserted: int = 1
    text_column: str = "text"
    errors: str = "error"


@dataclass
class EvalConfig:
    """lm-eval tasks and held-out texts by role, and which queries they are asked in."""

    name: str = MISSING
    for_model: str | None = None
    tasks: dict[str, list[str]] = MISSING
    include_path: str | None = MISSING
    local_dir: str | None = MISSING
    queries: list[str] = MISSING
    asked_of: dict[str, list[str]] = field(default_factory=dict)  # query -> its roles; without an entry, all roles
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
    texts: TextConfig = field(default_factory=TextConfig)
    chat_template: bool = False
    system_instruction: str | None = None
    fewshot_as_multiturn: bool = True
    devices: int | None = None
    every: int | None = None
    every_documents: int = 16
    every_questions: int | None = None

    @property
    def roles(self) -> dict[str, list[str]]:
        """All that is asked: the tasks of each role, and those of its texts as the role ROLE_text."""
        return {**self.tasks, **text_tasks(self.texts.corpora)}


@dataclass
class TrackerConfig:
    """Where curves and metrics go beside the run's folder."""

    name: str = MISSING
    project: str | None = MISSING
    entity: str | None = MISSING
    mode: str = MISSING
    group: str | None = MISSING
    tags: list[str] = MISSING
    questions: bool = MISSING
    delta: bool = MISSING
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
    attacks: list[str] = field(default_factory=list)  # of conf/attack, or all


def unshared(a: Config, b: Config) -> Iterator[str]:
    """The keys in which two configurations differ, of those that runs of one process share.

    They are `SHARED`, and the seed where it draws the order of the documents.
    """
    keys = (*SHARED, "seed") if a.data.shuffle else SHARED
    return (key for key in keys if _value(a, key) != _value(b, key))


def _value(config: Config, key: str) -> Any:
    """The value of a dotted key; None for a method's argument that it does not have."""
    group, _, name = key.partition(".")
    return config.method.get(name) if group == "method" else attrgetter(key)(config)


def is_number(value: object) -> bool:
    """An int or a float, and no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def as_float(value: Any) -> Any:
    """A number as a float; anything else as it is."""
    return float(value) if is_number(value) else value


def is_asked(asked_of: Mapping[str, Sequence[str]], query: str, role: str) -> bool:
    """Whether a kind of query is asked of a role: of those that `eval.asked_of` lists, or else of all."""
    return role in asked_of.get(query, (role,))


def text_role(role: str) -> str:
    """The name under which the held-out texts of a role are reported."""
    return f"{role}_text"


def text_task(role: str, name: str) -> str:
    """The name under which a held-out corpus of a role is reported."""
    return f"{role}_text_{name}"


def text_tasks(corpora: Mapping[str, Mapping[str, str]]) -> dict[str, list[str]]:
    """The roles and names of held-out corpora: {"retain_text": ["retain_text_wiki"], ...}."""
    return {text_role(role): [text_task(role, name) for name in named] for role, named in corpora.items()}
