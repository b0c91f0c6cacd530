"""Composing conf/ outside of a Hydra job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, OmegaConf

from unlearn.errors import UserError

ALL = "all"
CONF = Path(__file__).parents[1] / "conf"  # a link to the checkout's conf/; in a wheel, the files themselves


def attack_names() -> list[str]:
    """The names of the attacks in conf/attack, and `all`."""
    return [*sorted(file.stem for file in (CONF / "attack").glob("*.yaml")), ALL]


def composed(overrides: list[str], name: str = "config") -> Any:
    """Compose a file of conf/, by default the main one, with overrides. Nothing is checked. Raises Hydra's errors."""
    if GlobalHydra.instance().is_initialized():  # inside launch.py, which reads conf/ as well
        return compose(name, overrides)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, overrides)


def is_override(argument: str) -> bool:
    """Whether an argument is KEY=VALUE, not a path that contains an equals sign."""
    return "=" in argument and "/" not in argument.partition("=")[0] and not Path(argument).is_dir()


def of_model(what: str) -> list[str]:
    """The overrides that choose a model: model=NAME, a folder, or a hub id. The last two also set the model's name.

    Raises UserError for anything else.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id  # takes longer than composing

    if is_override(what):
        return [what]
    message = f"{what} is neither a folder with a run or a checkpoint, nor a model id of the hub (NAME or OWNER/NAME)."
    if not Path(what).is_dir():
        try:
            validate_repo_id(what)
        except HFValidationError:
            raise UserError(message) from None
        if "/" in what and Path(what).parent.is_dir():  # a mistyped folder beside others
            raise UserError(message)
    chosen = {"model.path": what, "model.name": Path(what).resolve().name}
    return [override(key, value) for key, value in chosen.items()]


def override(key: str, value: str | None) -> str:
    """The override KEY=VALUE, with the value quoted."""
    return f"{key}={'null' if value is None else QuotedString(value, Quote.single).with_quotes()}"


def changed(config: DictConfig, overrides: list[str]) -> None:
    """Apply overrides to a composed configuration, in place. Raises Hydra's errors."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    for override in parsed:
        if override.is_sweep_override():
            raise UserError(f"{override.input_line} is not allowed: give a single value.")
    OmegaConf.set_struct(config, True)
    ConfigLoaderImpl._apply_overrides_to_config(parsed, config)
