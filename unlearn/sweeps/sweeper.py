"""The jobs of `-m`: the product of the values on the command line, for each grid of a list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from unlearn.errors import UserError
from unlearn.sweeps.launchers import SweepLauncher


class GridsSweeper(BasicSweeper):
    """Hydra's own sweeper over the union of `grids` ({key: values} each), one after another and all at once.

    `params` and the command line hold for every grid and win over its values. But an option of a group, `method`, on
    which a grid's other keys depend, selects the grids that have it. Equal jobs are run once.
    """

    def __init__(
        self,
        max_batch_size: int | None = None,
        params: Mapping[str, str] | None = None,
        grids: Sequence[Mapping[str, str]] | None = None,
    ) -> None:
        super().__init__(max_batch_size, dict(params or {}))
        self.grids = grids or [{}]

    def split_arguments(self, overrides: list[Override], max_batch_size: int | None) -> list[list[list[str]]]:
        """The overrides of every job, in chunks of `max_batch_size`. Raises UserError for what no grid has."""
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        grids = [parser.parse_overrides([f"{key}={values}" for key, values in grid.items()]) for grid in self.grids]
        asked = {key: _values(o) for o in overrides if "." not in (key := o.get_key_element())}
        jobs: dict[tuple[str, ...], None] = {}
        for grid in grids:
            options = _options(grid)
            if all(option in asked.get(group, [option]) for group, option in options.items()):
                others = [override for override in overrides if override.get_key_element() not in options]
                [product] = BasicSweeper.split_arguments([*grid, *others], None)
                jobs |= dict.fromkeys(map(tuple, product))
        for group, values in asked.items():
            allowed = list(dict.fromkeys(_options(grid)[group] for grid in grids if group in _options(grid)))
            if allowed and (not jobs or not set(values) <= set(allowed)):
                raise UserError(
                    f"This sweep has no grid for {group}={','.join(values)}. Allowed: {', '.join(allowed)}."
                )
        return list(self.split_overrides_to_chunks([list(job) for job in jobs], max_batch_size))

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Skipped if the launcher composes all jobs first anyway; it would take long for hundreds of jobs."""
        if not isinstance(self.launcher, SweepLauncher):
            super().validate_batch_is_legal(batch)


def _values(override: Override) -> list[str]:
    """The value of an override, or all of them."""
    if override.is_discrete_sweep():
        return list(override.sweep_string_iterator())
    return [override.get_value_element_as_str()]


def _options(grid: Sequence[Override]) -> dict[str, str]:
    """{group: option} of a grid: the keys without a dot that have one value, as method=rmu."""
    keys = {override.get_key_element(): override for override in grid if not override.is_sweep_override()}
    return {key: override.get_value_element_as_str() for key, override in keys.items() if "." not in key}
