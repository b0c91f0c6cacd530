"""The scores of an attack, in a folder that is written after each level."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unlearn.records.attacks import AttackAbout, AttackScore, read_attack, write_attack
from unlearn.records.scores import SCORES, Score
from unlearn.storage.hold import Hold


@dataclass
class AttackResults:
    """The scores of one or more models under an attack, as they are in a folder (`unlearn.records.attacks`).

    `hold` is on the run's folder; None if the folder is one that runs share: there, equal names mean equal scores.
    """

    folder: Path
    about: AttackAbout
    rows: list[AttackScore]
    hold: Hold | None = None

    @classmethod
    def load(cls, folder: Path, about: AttackAbout, hold: Hold | None = None) -> AttackResults:
        """What the folder holds; no rows if there is none."""
        rows = read_attack(folder)[1] if (folder / SCORES).is_file() else []
        return cls(folder, about, rows, hold)

    def levels(self, model: str) -> list[float]:
        """The levels that have been measured of a model, in that order."""
        return list(dict.fromkeys(row.level for row in self.rows if row.score.model == model))

    def add(self, level: float, name: str, scores: list[Score]) -> None:
        """Keep the scores of a level, and write the folder."""
        self.rows += [AttackScore(self.about.attack, level, name, score) for score in scores]
        self.write()

    def take_over(self, other: AttackResults, model: str) -> None:
        """Replace the scores of a model by those in another folder, and write this one, where they differ."""
        taken = [row for row in other.rows if row.score.model == model]
        if taken != [row for row in self.rows if row.score.model == model]:
            self.rows = [row for row in self.rows if row.score.model != model] + taken
            self.write()

    def scores(self, level: float) -> list[Score]:
        """All models' scores at a level."""
        return [row.score for row in self.rows if row.level == level]

    def write(self) -> None:
        """Write the folder."""
        if self.hold is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_attack(self.folder, self.about, self.rows)
        else:
            with self.hold.filling(self.folder, last=SCORES) as results:
                write_attack(results, self.about, self.rows)
