"""The logit lens (nostalgebraist, 2020): final norm and head applied to the states after an earlier layer.

What an earlier layer says, and the last one does not, is hidden, not erased.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from unlearn.attacks.attack import Attack, Measured, Victim, check_levels
from unlearn.errors import UserError
from unlearn.evaluate.harness import evaluate
from unlearn.models.architectures import decoder_layers
from unlearn.models.depths import Depths
from unlearn.records.legacy import flat_metrics


@dataclass(frozen=True)
class LogitLens(Attack):
    """The model without the layers behind each of `levels`. All are asked together."""

    levels: Sequence[int] | None = None  # numbers of layers, from 0; None: all
    level = "after layer {:g}"

    def __post_init__(self) -> None:
        if self.levels is not None:
            check_levels(self.levels, "layers, integers from 0", lambda x: isinstance(x, int) and x >= 0)

    def levels_of(self, victim: Victim) -> Sequence[int]:
        """All layers, or the chosen ones. Raises UserError for one that the model does not have."""
        count = len(decoder_layers(victim.model))
        levels = range(count) if self.levels is None else self.levels
        if max(levels) >= count:
            raise UserError(f"attack.levels={list(levels)}: the model's layers are 0 to {count - 1}.")
        return levels

    def measure(self, victim: Victim, missing: Collection[float]) -> Measured:
        """Ask what each layer says."""
        levels = [level for level in self.levels_of(victim) if level in missing]
        answers = evaluate(
            Depths(victim.model, levels),
            victim.tokenizer,
            victim.suite,
            label=victim.label,
            about=f"after each of {len(levels)} layers",
            tokens_per_batch=victim.tokens_per_batch,
        )
        for level, of_level in zip(levels, answers, strict=True):
            yield level, flat_metrics(of_level.scores)
