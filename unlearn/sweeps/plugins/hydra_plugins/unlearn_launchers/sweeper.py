"""The sweeper of `unlearn.sweeps.sweeper` by the name that Hydra knows: it loads plugins from here only."""

from unlearn.sweeps import sweeper


class GridsSweeper(sweeper.GridsSweeper):
    """`hydra/sweeper=grids`."""
