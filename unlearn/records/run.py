"""run.json, the record of a run: what may be in it, and reading it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field, FiniteFloat, TypeAdapter, with_config
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from unlearn.storage.schema import Integer, Name, Tree, check_links, checked, read_as

RECORD = "run.json"


@with_config(extra="allow")
class Attempt(TypedDict, total=False):
    """The place and time at which a process began to work on a run, and how that ended."""

    began: float
    until: float
    ended: str
    host: str
    pid: int
    gpus: str | None
    slurm_job: str | None
    slurm_restarts: int
    commit: str | None


@with_config(extra="allow")
class Code(TypedDict, total=False):
    """The version of the code."""

    version: str
    commit: str | None
    changed: bool | None


@with_config(extra="allow")
class InputHashes(TypedDict, total=False):
    """Hashes of what a run read (`unlearn.runs.inputs.Inputs.hashes`)."""

    model: str | None
    dtype: str
    questions: dict[Name, dict[Name, str]]
    query_words: dict[Name, str]


@with_config(extra="allow")
class Adopted(TypedDict, total=False):
    """The two checkpoints of an adopted run: fingerprints and places, what was given, what differs and by how much."""

    checkpoint: str
    base: str
    checkpoint_path: str
    base_path: str
    given: list[str]
    changes: dict[str, float]


@with_config(extra="allow")
class RunRecord(TypedDict, total=False):
    """run.json. It is empty until the run has begun; `unlearn.runs.folder` says what the entries mean."""

    status: Literal["running", "done", "failed"]
    config: Tree
    identity: Tree
    hashes: dict[str, str]
    inputs: InputHashes
    code: Code | None
    python: str
    packages: dict[str, str | None]
    attempts: list[Attempt]
    trained: dict[str, float]
    training_from: Name
    wandb_id: Annotated[str, Field(pattern=r"^\w+$")]
    attacked: list[Name]
    adopted: Adopted
    error: str


@with_config(extra="allow")
class Named(TypedDict):
    """The model, or the method, of a run."""

    name: Name


@with_config(extra="allow")
class Noise(TypedDict):
    """The group `rna`."""

    nu: FiniteFloat


@with_config(extra="allow")
class HeldOut(TypedDict):
    """The group `eval.texts`."""

    corpora: NotRequired[dict[Name, dict[Name, str]]]


@with_config(extra="allow")
class Asked(TypedDict):
    """The group `eval`, as far as reports read it."""

    tasks: dict[Name, list[Name]]
    queries: list[Name]
    asked_of: NotRequired[dict[Name, list[Name]]]
    texts: NotRequired[HeldOut]


@with_config(extra="allow")
class Identity(TypedDict):
    """The identity of a run, as far as reports read it."""

    model: Named
    method: Named
    rna: Noise
    eval: Asked
    seed: Integer
    results_version: Integer


@with_config(extra="allow")
class PerhapsNoise(TypedDict):
    """The group `rna` of an adopted checkpoint."""

    nu: NotRequired[FiniteFloat]


@with_config(extra="allow")
class AdoptedIdentity(TypedDict):
    """The identity of an adopted checkpoint, of which nu and the seed may be unknown."""

    model: Named
    method: Named
    rna: PerhapsNoise
    eval: Asked
    seed: NotRequired[Integer]
    results_version: Integer
    adopted: dict[Name, str]


_RECORD: TypeAdapter[Any] = TypeAdapter(RunRecord)
_IDENTITY = TypeAdapter(Identity)
_OF_ADOPTED = TypeAdapter(AdoptedIdentity)
ASKED = TypeAdapter(Asked)


def read_record(folder: Path) -> dict[str, Any]:
    """The run.json of a folder, a `RunRecord`.

    Raises UserError if it cannot be read or is of another form, and for a link that leads out of the folder.
    """
    check_links(folder)
    return read_as(_RECORD, folder / RECORD)


def check_identity(folder: Path, identity: dict[str, Any]) -> None:
    """Raise UserError unless the identity in a run's record has all that results are sorted by."""
    form: TypeAdapter[Any] = _OF_ADOPTED if "adopted" in identity else _IDENTITY
    checked(form, identity, folder / RECORD, "identity")
