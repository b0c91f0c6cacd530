"""The keys of our SLURM launchers, and their types."""

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


ConfigStore.instance().store(group="hydra/launcher", name="slurm_schema", node=SlurmConf, provider="unlearn")
