"""Hydra's entry point: `python launch.py --help`."""

import hydra
from omegaconf import DictConfig

from unlearn.cli.launch import of_one_job, one_sentence
from unlearn.config.hydra_job import to_config


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(raw: DictConfig) -> None:
    """Check the configuration (nothing heavy is imported for that), then run."""
    with of_one_job():
        config, hydra_folder = to_config(raw)
        from unlearn.experiment import run

        run(config, hydra_folder)


if __name__ == "__main__":
    with one_sentence():
        main()
