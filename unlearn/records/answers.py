"""What models answered: the scores, and the samples that they are computed from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from unlearn.records.samples import Sample, write_samples
from unlearn.records.scores import Score, write_scores


@dataclass(frozen=True)
class Answers:
    """The scores and samples of one or more models."""

    scores: list[Score]
    samples: list[Sample]

    def write(self, folder: Path) -> None:
        """Write `folder`/samples.parquet, then `folder`/scores.parquet."""
        write_samples(folder, self.samples)
        write_scores(folder, self.scores)

    @cached_property
    def _samples_of(self) -> dict[tuple[str, str, str], list[Sample]]:
        """(role, task, query) -> samples, in the order in which they were asked."""
        samples_of: dict[tuple[str, str, str], list[Sample]] = {}
        for sample in self.samples:
            samples_of.setdefault((sample.role, sample.task, sample.query), []).append(sample)
        return samples_of

    def values(self, role: str, leaves: Sequence[str], query: str, of: str = "value") -> list[float]:
        """`Sample.value`, or another property, of every question of a task or group: `leaves`, task after task.

        Empty if one of them was not asked, or has questions without a value.
        """
        values = []
        for leaf in leaves:
            samples = self._samples_of.get((role, leaf, query), [])
            own = [getattr(sample, of) for sample in samples]
            if not samples or None in own:
                return []
            values += own
        return values

    def facts(self, role: str, leaves: Sequence[str], query: str) -> list[tuple[str, str]]:
        """`Sample.item` of every question, in the order of `values`."""
        return [sample.item for leaf in leaves for sample in self._samples_of.get((role, leaf, query), [])]
