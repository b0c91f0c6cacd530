"""The best point of a search as a file for conf/model, with how it was found: `unlearn best`."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn.errors import UserError
from unlearn.screen import plain
from unlearn.sweeps.search.figures import FIGURES, check_names
from unlearn.sweeps.search.study import ABOUT, OF_TRIAL, read_study
from unlearn.sweeps.search.table import command

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

CONDITION = re.compile(r"(\w+)\s*(<=|>=|<|>)\s*(-?[\d.]+(?:e-?\d+)?)")
ARGUMENTS = ("method.c", "method.beta")
COMPARED = {"<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge}
OF_METHOD = {"rna.nu": "nu", "loss.alpha": "alpha", "train.lr": "lr", "train.steps": "steps", "model.layer": "layer"}


def best_as_yaml(folder: Path, where: Sequence[str] = ()) -> str:
    """The trial that is best in the first objective, of those that keep the bounds and the conditions.

    Raises UserError if there is none, for a condition that cannot be read, and for a name that was not measured.
    """
    study = read_study(folder)
    about, trial = study.user_attrs[ABOUT], best_trial(study, where)
    method = str(trial.params.get("method", about["method"]))
    fixed = dict(text.split("=", 1) for text in about["fixed"] if "=" in text)
    settled, others = _for_a_model({k: v for k, v in fixed.items() if k in (*OF_METHOD, *ARGUMENTS)} | trial.params)
    layer = settled.pop("layer", None)  # not every file of conf/model reads the layer of a method
    figures = ", ".join(
        f"{name} {value:.3f} {FIGURES[name].unit}" for name, value in trial.user_attrs[OF_TRIAL].items()
    )
    trials, settings = study.get_trials(deepcopy=False), about["settings"]
    lines = [
        f"Trial {trial.number} of a search with {len(trials)} trials, {trial.datetime_complete:%Y-%m-%d}:",
        f"{figures}, each less the base model's.",
        f"Seeds {settings['seeds']} ({settings['of']}), eval={about['eval']}, sampler {settings['sampler']}. Found by:",
        f"  {about['command']}",
        "Run again by:",
        f"  {command(trial, about)}",
        *([f"Has no place in this file: {' '.join(others)}"] if others else []),
    ]
    head = "".join(f"# {line}\n" for line in map(plain, lines))
    values = ", ".join(f"{key}: {value}" for key, value in settled.items())
    of_layer = "" if layer is None else f"layer: {layer}\n"
    return f"{head}defaults: [{about['model']}, _self_]\n{of_layer}methods:\n  {method}: {{{values}}}\n"


def best_trial(study: Study, where: Sequence[str]) -> FrozenTrial:
    """See `best_as_yaml`."""
    settings = study.user_attrs[ABOUT]["settings"]
    complete = [trial for trial in study.get_trials(deepcopy=False) if OF_TRIAL in trial.user_attrs and trial.values]
    kept = [trial for trial in complete if all(value <= 0 for value in trial.constraints.values())]
    for condition in where:
        kept = [trial for trial in kept if _holds(condition, trial.user_attrs[OF_TRIAL], settings)]
    if not kept:
        raise UserError(f"None of {len(complete)} complete trials keeps the bounds{' and --where' if where else ''}.")
    first, direction = next(iter(settings["objectives"].items()))
    best = max if direction == "max" else min
    return best(kept, key=lambda trial: trial.user_attrs[OF_TRIAL][first])


def _holds(condition: str, figures: Mapping[str, float], settings: Mapping[str, Any]) -> bool:
    match = CONDITION.fullmatch(condition.strip())
    if match is None:
        raise UserError(f"--where {condition}: cannot be read. An example: 'retain_text<0.05'.")
    name, sign, number = match.groups()
    check_names("--where", [name])
    if name not in figures:
        asked = ", ".join([*settings["objectives"], *settings["bounds"]])
        raise UserError(f"--where {condition}: this search did not measure {name}. It measured: {asked}.")
    return bool(COMPARED[sign](figures[name], float(number)))


def _for_a_model(params: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The values by their keys below `methods` of a file of conf/model, and those that have no place there."""
    settled, others = {}, []
    for key, value in params.items():
        if key in OF_METHOD:
            settled[OF_METHOD[key]] = value
        elif key in ARGUMENTS:
            settled[key.removeprefix("method.")] = value
        elif key != "method":
            others.append(f"{key}={value}")
    return settled, others
