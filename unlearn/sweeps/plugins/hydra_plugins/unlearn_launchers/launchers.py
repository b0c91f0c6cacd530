"""The launchers of `unlearn.sweeps.launchers` by the names that Hydra knows: it loads plugins from here only."""

from unlearn.sweeps import launchers


class PackedLauncher(launchers.PackedLauncher):
    """`hydra/launcher=packed`."""


class LocalLauncher(launchers.LocalLauncher):
    """`hydra/launcher=local`."""


class SlurmLauncher(launchers.SlurmLauncher):
    """`hydra/launcher=slurm`, `slurm_packed`."""


class AutoLauncher(launchers.AutoLauncher):
    """`hydra/launcher=auto`."""
