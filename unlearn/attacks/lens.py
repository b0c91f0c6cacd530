"""The logit lens (nostalgebraist, 2020): final norm and head applied to the states after an earlier layer.

What an earlier layer says, and the last one does not, is hidden, not erased.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from unlearn.attacks.attack import Change, Victim, check_levels
from unlearn.errors import UserError
from unlearn.models.architectures import decoder_layers


@dataclass(frozen=True)
class LogitLens(Change):
    """The model without the layers behind each of `levels`."""

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

    def stages(self, victim: Victim) -> Generator[float, None, None]:
        """Layers."""
        config, layers = victim.model.config.get_text_config(), decoder_layers(victim.model)
        whole, depth = list(layers), config.num_hidden_layers
        for level in self.levels_of(victim):
            try:
                del layers[level + 1 :]
                config.num_hidden_layers = level + 1
                yield level
            finally:
                layers.extend(whole[len(layers) :])
                config.num_hidden_layers = depth
