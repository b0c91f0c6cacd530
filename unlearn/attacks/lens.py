"""The logit lens (nostalgebraist, 2020): final norm and head applied to the states after an earlier layer.

What an earlier layer still tells, and the last one does not, is hidden, not erased.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from unlearn.attacks.attack import Attack, Measured, Target, check_levels
from unlearn.errors import UserError
from unlearn.evaluation.harness import evaluate
from unlearn.models.architectures import decoder_layers
from unlearn.models.depths import Depths
from unlearn.records.attacks import half_scores


@dataclass(frozen=True)
class LogitLens(Attack):
    """The model without the layers behind each of `levels`. All are evaluated together."""

    levels: Sequence[int] | None = None  # numbers of layers, from 0; None: all
    level = "after layer {:g}"
    at_once = True

    def __post_init__(self) -> None:
        check_layers(self.levels)

    def levels_of(self, target: Target) -> Sequence[int]:
        """All layers, or the chosen ones."""
        return chosen_layers(self.levels, target)

    def measure(self, target: Target, missing: Collection[float]) -> Measured:
        """Evaluate what each layer tells."""
        levels = sorted((level for level in self.levels_of(target) if level in missing), reverse=True)
        answers = evaluate(
            Depths(target.model, levels),
            target.tokenizer,
            target.suite,
            label=target.label,
            about=f"after each of {len(levels)} layers",
            tokens_per_batch=target.tokens_per_batch,
        )
        for level, answers_of_level in zip(reversed(levels), reversed(answers), strict=True):
            yield level, answers_of_level.scores + half_scores(answers_of_level.samples)


def check_layers(levels: Sequence[int] | None) -> None:
    """Raise UserError unless `levels` is None or a list of numbers of layers."""
    if levels is not None:
        check_levels(levels, "layers, integers from 0", lambda x: isinstance(x, int) and x >= 0)


def chosen_layers(levels: Sequence[int] | None, target: Target) -> Sequence[int]:
    """These layers, or all of the model (None). Raises UserError for a layer that the model does not have."""
    count = len(decoder_layers(target.model))
    chosen = range(count) if levels is None else levels
    if max(chosen) >= count:
        raise UserError(f"attack.levels={list(chosen)}: the model's layers are 0 to {count - 1}.")
    return chosen
