"""The evaluations of a finished run: its own, and later ones, each with its results in RUN/evaluations/NAME."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Required

from pydantic import FiniteFloat, TypeAdapter
from typing_extensions import TypedDict

from unlearn.records.answers import Answers
from unlearn.records.names import is_asked, text_tasks
from unlearn.records.ngrams import Sizes
from unlearn.records.run import ASKED, Asked
from unlearn.records.run import RECORD as RUN
from unlearn.records.scores import SCORES
from unlearn.runs.folder import write_results
from unlearn.storage.files import write_json
from unlearn.storage.hold import Hold
from unlearn.storage.schema import Name, checked, read_as

EVALUATIONS = "evaluations"  # below a run's folder
RECORD = "evaluation.json"


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation asked, and where its results are.

    Args:
        folder: the folder of scores.parquet and samples.parquet.
        config: the `eval` group of the configuration.
        questions: query -> role -> hash of everything that the scores depend on (`Suite.hashes`).
        query_words: query -> hash of the words that replaced options or were inserted.
        time: the time of its end, in seconds since 1970; 0 for the run's own evaluation.
    """

    folder: Path
    config: dict[str, Any]
    questions: dict[str, dict[str, str]] = field(default_factory=dict)
    query_words: dict[str, str] = field(default_factory=dict)
    time: float = 0.0

    @property
    def roles(self) -> dict[str, list[str]]:
        """The tasks and held-out texts of each role."""
        return {**self.config["tasks"], **text_tasks(self.config.get("texts", {}).get("corpora", {}))}

    def asks(self, query: str, role: str) -> bool:
        """Whether this query was asked of this role."""
        has_both = bool(self.roles.get(role)) and query in self.config["queries"]
        return has_both and is_asked(self.config.get("asked_of", {}), query, role)


class _Record(TypedDict, total=False):
    """evaluation.json: an `Evaluation` without its folder."""

    config: Required[Asked]
    questions: dict[Name, dict[Name, str]]
    query_words: dict[Name, str]
    time: FiniteFloat


_RECORD: TypeAdapter[Any] = TypeAdapter(_Record)


def evaluations_of(run: Path, record: Mapping[str, Any]) -> list[Evaluation]:
    """The evaluations of a run, in the order in which they were made. `record` is its run.json.

    Raises UserError for an evaluation.json that cannot be read, and for a record of another form.
    """
    inputs = record.get("inputs", {})
    asked = checked(ASKED, record.get("config", {}).get("eval"), run / RUN, "config.eval")
    first = Evaluation(run, dict(asked), inputs.get("questions") or {}, inputs.get("query_words") or {})
    files = [file for file in run.glob(f"{EVALUATIONS}/*/{RECORD}") if (file.parent / SCORES).is_file()]
    later = [Evaluation(file.parent, **read_as(_RECORD, file)) for file in files]
    return [first, *sorted(later, key=lambda evaluation: (evaluation.time, evaluation.folder))]


def keep_evaluation(
    lock: Hold, evaluation: Evaluation, answers: Answers, training: Mapping[str, float], ngrams: Sizes | None = None
) -> None:
    """Write the results of a later evaluation and its evaluation.json, without which they do not count, in one step.

    If the same evaluation was made before, its evaluation.json is removed first and written last.
    """
    record = asdict(evaluation)
    home = record.pop("folder")
    lock.remove(home / RECORD)
    with lock.filling(home, last=RECORD) as folder:
        write_results(folder, answers, training, ngrams)
        write_json(folder / RECORD, record)
