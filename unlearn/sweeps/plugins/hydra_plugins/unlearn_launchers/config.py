"""The keys of our launchers, and their types."""

# Without postponed annotations: Hydra executes this file before it is among sys.modules.
from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf


@dataclass
class SlurmConf(SlurmQueueConf):
    """hydra-submitit-launcher's keys, and ours."""

    _target_: str = "hydra_plugins.unlearn_launchers.launchers.SlurmLauncher"
    pack_size: int | None = 1  # jobs of the sweep in one SLURM job; None: all
    python: str | None = None  # the command that starts Python; None: the one that submits
    wait: bool = True  # until all jobs have ended
    dry_run: bool = False  # show what would be submitted, and end


@dataclass
class PackedConf:
    """The keys of hydra/launcher=packed."""

    _target_: str = "hydra_plugins.unlearn_launchers.launchers.PackedLauncher"
    pack_size: int | None = None


@dataclass
class LocalConf:
    """The keys of hydra/launcher=local."""

    _target_: str = "hydra_plugins.unlearn_launchers.launchers.LocalLauncher"
    devices: list[int] | None = None  # places among the visible ones
    pack_size: int | None = None


for name, node in (("slurm_schema", SlurmConf), ("packed_schema", PackedConf), ("local_schema", LocalConf)):
    ConfigStore.instance().store(group="hydra/launcher", name=name, node=node, provider="unlearn")
