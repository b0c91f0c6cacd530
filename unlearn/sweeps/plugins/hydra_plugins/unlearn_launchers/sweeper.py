"""The sweepers of `unlearn.sweeps` by the names that Hydra knows: it loads plugins from here only."""

from unlearn.sweeps import search_sweeper, sweeper


class GridsSweeper(sweeper.GridsSweeper):
    """`hydra/sweeper=grids`."""


class SearchSweeper(search_sweeper.SearchSweeper):
    """`hydra/sweeper=search`."""
