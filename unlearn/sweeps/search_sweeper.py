"""Hydra's sweeper for `hydra/sweeper=search`: the study's generations are jobs of one sweep, run by the launcher.

Hydra imports this file at every start (plugins/ names its class), so other modules are imported when they are needed.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

if TYPE_CHECKING:
    from unlearn.config.schema import Config
    from unlearn.sweeps.launchers import SweepLauncher
    from unlearn.sweeps.search.settings import SearchSettings
    from unlearn.sweeps.search.space import Space
    from unlearn.sweeps.search.study import Outcome

SEARCHES = "searches"  # below output_root


class SearchSweeper(Sweeper):
    """Searches the values on the command line, and those of `search.space`, by Optuna."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra passes."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> None:
        """Run the search, or go on with it. Everything that can be wrong with it is told before a job begins."""
        from unlearn.screen import say
        from unlearn.storage.lock import FolderLock
        from unlearn.sweeps.search.settings import SearchSettings
        from unlearn.sweeps.search.study import ABOUT, Search, open_study
        from unlearn.sweeps.search.table import show_front
        from unlearn.sweeps.search.track import tracked
        from unlearn.sweeps.submission import leave_other_code
        from unlearn.sweeps.sweep import Sweep

        settings = SearchSettings.read(OmegaConf.to_container(self.config.search, resolve=True))
        space = self._space(settings, arguments)
        config = self._first_config(space)
        settings = settings.completed(config)
        folder = self._folder(space, settings, config)
        launcher = self._launcher(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with FolderLock(folder):
            if (folder / "sweep.json").is_file():
                leave_other_code(Sweep.open(folder))
            study = open_study(folder, settings)
            study.set_user_attr(ABOUT, _about(space, settings, config))
            say(f"Search: {folder} (the same command goes on with it)")
            search = Search(space, settings, study, lambda jobs: _outcomes(launcher, folder, settings, jobs))
            with tracked(folder, study, config.tracker) as send:

                def between() -> None:
                    send()
                    show_front(study)

                search.go_on(between)
                send()
            show_front(study, commands=True)

    def _space(self, settings: SearchSettings, arguments: Sequence[str]) -> Space:
        from hydra.core.override_parser.overrides_parser import OverridesParser

        from unlearn.sweeps.search.space import Space

        of_file = [f"{key}={'null' if value is None else value}" for key, value in settings.space.items()]
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*of_file, *arguments])
        return Space.of([o for o in overrides if o.get_key_element().partition(".")[0] != "search"])

    def _first_config(self, space: Space) -> Config:
        """The configuration of one point. Raises what Hydra and `settle` raise for wrong keys and values."""
        from unlearn.config.settle import settle

        overrides = space.overrides(space.first_point())
        raw = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(raw):
            raw.pop("hydra")
        return settle(raw)

    def _folder(self, space: Space, settings: SearchSettings, config: Config) -> Path:
        """OUTPUT_ROOT/searches/MODEL-HASH, the hash being of all that determines the trials but their number."""
        from unlearn.config.identity import identity
        from unlearn.storage.hashing import json_sha256

        what = {
            "space": {key: str(distribution) for key, distribution in space.distributions.items()},
            "settings": settings.model_dump(exclude={"trials", "space"}),
            "identity": identity(config),
        }
        return (Path(config.output_root) / SEARCHES / f"{config.model.name}-{json_sha256(what)[:10]}").absolute()

    def _launcher(self, folder: Path) -> SweepLauncher:
        """The launcher, with the search's folder as its sweep's. Raises UserError for one that cannot run a search."""
        from unlearn.config.compose import override
        from unlearn.errors import UserError

        chosen = self.config.hydra.runtime.choices["hydra/launcher"]
        settings, given = self.config.hydra.launcher, self.config.hydra.overrides.hydra
        if settings.get("dry_run") or settings.get("wait") is False:
            raise UserError("A search needs results: not hydra.launcher.dry_run=true, nor hydra.launcher.wait=false.")
        if any(o.startswith("hydra.sweep.dir=") for o in given):
            raise UserError("hydra.sweep.dir: a search names its folder itself. output_root=DIR puts it elsewhere.")
        with open_dict(self.config):
            self.config.hydra.sweep.dir = str(folder)
            given.append(override("hydra.sweep.dir", str(folder)))
        launcher: Any = Plugins.instance().instantiate_launcher(
            hydra_context=self.hydra_context, task_function=self.task_function, config=self.config
        )
        if not hasattr(launcher, "run_jobs"):
            allowed = "auto, packed, local, slurm, slurm_packed"
            raise UserError(f"hydra/launcher={chosen} cannot run a search. Allowed: {allowed}.")
        return launcher


def _about(space: Space, settings: SearchSettings, config: Config) -> dict[str, Any]:
    """What is kept of a search beside its trials, to show it later."""
    return {
        "command": shlex.join(["python", "launch.py", *sys.argv[1:]]),
        "fixed": list(space.fixed),
        "settings": settings.model_dump(),
        "model": config.model.name,
        "method": str(config.method["name"]),
        "eval": config.eval.name,
    }


def _outcomes(
    launcher: SweepLauncher, folder: Path, settings: SearchSettings, jobs: Mapping[int, Sequence[str]]
) -> dict[int, Outcome]:
    """Run jobs of the search's sweep, and read what they gave."""
    from unlearn.sweeps.search.study import Outcome
    from unlearn.sweeps.sweep import Sweep

    sweep = Sweep.open(folder) if (folder / "sweep.json").is_file() else Sweep(folder)
    errors, _ = launcher.run_jobs(sweep, jobs)
    return {
        number: Outcome(error=errors[number]) if number in errors else _read(sweep.jobs[number].folder or "", settings)
        for number in jobs
    }


def _read(folder: str, settings: SearchSettings) -> Outcome:
    """The figures of a finished run."""
    from unlearn.errors import UserError
    from unlearn.sweeps.search.figures import read_figures
    from unlearn.sweeps.search.study import Outcome

    try:
        return Outcome(folder, read_figures(Path(folder), settings.judged))
    except UserError as error:
        return Outcome(folder, error=str(error))
