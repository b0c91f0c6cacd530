"""The jobs of `-m`: the product of the values on the command line, for each grid of a list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra_plugins.unlearn_launchers.launchers import SweepLauncher


class GridsSweeper(BasicSweeper):
    """Hydra's own sweeper over the union of `grids` ({key: values} each), one after another and all at once.

    `params` and the command line hold for every grid and win over it. Equal jobs are run once.
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
        """The overrides of every job, in chunks of `max_batch_size`."""
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        jobs: dict[tuple[str, ...], None] = {}
        for grid in self.grids:
            own = parser.parse_overrides([f"{key}={values}" for key, values in grid.items()])
            [all_of_it] = BasicSweeper.split_arguments([*own, *overrides], None)
            jobs |= dict.fromkeys(map(tuple, all_of_it))
        return list(self.split_overrides_to_chunks([list(job) for job in jobs], max_batch_size))

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Skipped if the launcher composes all jobs first anyway; it would take long for hundreds of jobs."""
        if not isinstance(self.launcher, SweepLauncher):
            super().validate_batch_is_legal(batch)
