"""`rna.nu=auto`: before a run, trials with several nu are trained together, and they choose the run's nu.

They are judged on held-out texts or questions that do not judge the run. docs/search.md explains the rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from unlearn.config.documents import check_documents
from unlearn.config.identity import TRIALS, identity
from unlearn.config.schema import Config, EvalConfig, MaxLogitConfig
from unlearn.config.settle import settle
from unlearn.errors import UserError, describe
from unlearn.methods.rna import RETAIN_TARGET
from unlearn.records.names import ALL, CHOOSING, JUDGING
from unlearn.screen import console, say
from unlearn.storage.hashing import json_sha256
from unlearn.storage.schema import first_problem
from unlearn.sweeps.search.figures import FIGURES, better, measured, violation

MULTIPLES = (0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # of `around`; without noise first


class Settings(BaseModel):
    """The keys `rna.auto.*`. conf/rna/gaussian.yaml explains each."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    around: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None
    steps: Annotated[int, Field(gt=0)] | None
    seed: int
    texts: Annotated[int, Field(gt=0)]
    questions: Annotated[int, Field(gt=0)]
    forgetting_lost: Annotated[float, Field(ge=0, lt=1)]
    retained_lost: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None


@dataclass(frozen=True)
class Judges:
    """The figures of a search that say what is forgotten, what is retained, and what a forget-token costs."""

    forgotten: str
    retained: str
    cost: str
    retained_lost: float  # by default

    @property
    def names(self) -> tuple[str, str, str]:
        """The three."""
        return self.forgotten, self.retained, self.cost


TEXTS = Judges("forget_text", "retain_text", "forget_token_cost", 0.05)
QUESTIONS = Judges("forget_accuracy", "retain_accuracy", "perturbed_accuracy", 5.0)


@dataclass(frozen=True)
class Trial:
    """A run with a nu to be tried: that nu, and its figures, or why there are none."""

    nu: float
    figures: Mapping[str, float] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True)
class Rule:
    """Which trial is chosen: the lowest cost of a forget-token, within bounds on what is forgotten and retained."""

    judges: Judges
    forgetting_lost: float
    retained_lost: float

    def choose(self, trials: Sequence[Trial]) -> Trial:
        """The chosen one; of equal ones the first. The first of `trials` is the one without noise.

        Raises UserError if that one has no figures, or has not forgotten anything.
        """
        plain = trials[0]
        if plain.error:
            raise UserError(f"rna.nu=auto: the trial with nu=0, with which others are compared, failed: {plain.error}")
        if self.forgotten(plain) <= 0:
            raise UserError(
                f"rna.nu=auto: the trial with nu=0 has forgotten nothing ({self.judges.forgotten} "
                f"{plain.figures[self.judges.forgotten]:.3g}). Give the trials more steps (rna.auto.steps)."
            )
        kept = [trial for trial in trials if not self.why_not(trial, plain)]
        return max(kept, key=lambda trial: better(self.judges.cost, trial.figures[self.judges.cost]))

    def forgotten(self, trial: Trial) -> float:
        """How much a trial has forgotten: the larger, the more."""
        return better(self.judges.forgotten, trial.figures[self.judges.forgotten])

    def why_not(self, trial: Trial, plain: Trial) -> str:
        """Why a trial cannot be chosen; empty if it can. `plain` is the one without noise."""
        if trial.error:
            return trial.error
        if self.forgotten(trial) < (1 - self.forgetting_lost) * self.forgotten(plain):
            return f"forgets less than {100 * (1 - self.forgetting_lost):g} %"
        name = self.judges.retained
        if violation(name, trial.figures[name], plain.figures[name]) > self.retained_lost:
            return f"loses over {self.retained_lost:g} {FIGURES[name].unit} more of what is retained"
        return ""


def find_nu(raw: DictConfig) -> Config:
    """The checked configuration of a run with `rna.nu=auto`, with the nu that its trials choose.

    What chooses does not judge: where the run's evaluation leaves nothing out, it leaves out what chooses from now on
    (`eval.texts.skip`, `eval.questions=judging`). Trials that are finished already are not repeated.

    Raises UserError for whatever is wrong with the configuration, before anything is trained; where there is nothing to
    measure; and where the trial without noise fails or forgets nothing.
    """
    auto = _of_trials(raw)
    raw = deepcopy(raw)
    raw.rna.nu = 0.0
    config = settle(raw)
    settings = _settings(auto)
    judges = _check(config, settings)
    config = replace(config, eval=_judging(config.eval, judges, settings))
    configs = [_trial_config(config, judges, settings, nu) for nu in _values(config, settings)]
    check_documents(configs[0])
    trials = _run(configs, judges, _folder(config, configs))
    lost = judges.retained_lost if settings.retained_lost is None else settings.retained_lost
    rule = Rule(judges, settings.forgetting_lost, lost)
    chosen = rule.choose(trials)
    _show(trials, rule, chosen)
    _say_what_judges(config.eval, judges)
    found = {"settings": settings.model_dump(), "trials": [_as_record(trial) for trial in trials]}
    return replace(config, rna=replace(config.rna, nu=chosen.nu), nu_found=found)


def _of_trials(raw: DictConfig) -> Any:
    """The values of `rna.auto`. Raises UserError for rna=none, which has none."""
    if "auto" not in raw.rna:
        raise UserError("rna=none is without noise, so that rna.nu=auto has nothing to find. Leave one of them out.")
    return OmegaConf.to_container(raw.rna.auto, resolve=True)


def _settings(given: Any) -> Settings:
    try:
        return Settings.model_validate(given)
    except ValidationError as error:
        raise UserError(first_problem(error, "rna.auto")) from None


def _check(config: Config, settings: Settings) -> Judges:
    """What can judge the trials.

    Raises UserError where nu has no meaning, or where nothing is measured; then for inputs that are not there.
    """
    from unlearn.sweeps.obstacles import obstacle

    if config.rna.where != RETAIN_TARGET:
        raise UserError(
            f"rna.nu=auto is for RNA, not for rna.where={config.rna.where}, a placebo: give rna.nu a number."
        )
    if not settings.around:
        raise UserError(
            f"rna.nu=auto: model {config.model.name!r} has no nu above 0 for method {config.method['name']!r}, to try "
            "others around it. Give one with rna.auto.around=NUMBER (`unlearn scale` has starting values), or rna.nu a "
            "number."
        )
    names = measured(config)
    judges = next((judges for judges in (TEXTS, QUESTIONS) if set(judges.names) <= set(names)), None)
    if judges is None:
        needed = " or ".join(", ".join(judges.names) for judges in (TEXTS, QUESTIONS))
        raise UserError(
            f"rna.nu=auto needs {needed}, but eval={config.eval.name} measures {', '.join(names) or 'nothing'}. "
            "Choose an evaluation with perturbed queries, and with texts or tasks of the roles forget and retain, as "
            "eval=toy or eval=real, or give rna.nu a number."
        )
    if config.seed == settings.seed:
        raise UserError(f"rna.auto.seed={settings.seed} is the seed of the run itself: set it to another number.")
    if judges is QUESTIONS and config.eval.questions == CHOOSING:
        raise UserError("eval.questions=choosing: these questions choose nu (rna.nu=auto). Leave it out.")
    if (problem := obstacle(config)) is not None:
        raise UserError(problem)
    return judges


def _judging(evaluation: EvalConfig, judges: Judges, settings: Settings) -> EvalConfig:
    """The run's evaluation without what chooses."""
    if judges is QUESTIONS:
        return replace(evaluation, questions=JUDGING)
    return replace(evaluation, texts=replace(evaluation.texts, skip=evaluation.texts.skip or settings.texts))


def _values(config: Config, settings: Settings) -> list[float]:
    """The nu of the trials, with what nu means in this configuration."""
    stds = [float(f"{multiple * (settings.around or 0):.3g}") for multiple in MULTIPLES]
    return [std**2 for std in stds] if config.rna.scale == "variance" else stds


def _trial_config(config: Config, judges: Judges, settings: Settings, nu: float) -> Config:
    """The configuration of a trial: the run's, with another nu and seed, asked what chooses."""
    roles = [FIGURES[judges.forgotten].role, FIGURES[judges.retained].role]
    texts, tasks = replace(config.eval.texts, corpora={}), {}
    if judges is TEXTS:
        corpora = {role: named for role, named in config.eval.texts.corpora.items() if role in ("forget", "retain")}
        texts = replace(texts, corpora=corpora, skip=0, documents=config.eval.texts.skip, texts_per_word=None)
    else:
        tasks = {role: config.eval.tasks[role] for role in roles}
    evaluation = replace(
        config.eval,
        tasks=tasks,
        texts=texts,
        queries=["default", "perturbed"],
        asked_of={"perturbed": [FIGURES[judges.cost].role]},
        questions=CHOOSING if judges is QUESTIONS else ALL,
        subset=settings.questions if judges is QUESTIONS else None,
        limit=None,
        every=None,
        control_tokens=None,
        maxlogit=MaxLogitConfig([], [], 0),
    )
    return replace(
        deepcopy(config),
        rna=replace(config.rna, nu=nu),
        eval=evaluation,
        train=replace(config.train, steps=settings.steps or config.train.steps, force=False),
        tracker=replace(config.tracker, name="none"),
        seed=settings.seed,
        output_root=str(Path(config.output_root) / TRIALS),
        output_dir=None,
        attacks=[],
    )


def _folder(config: Config, configs: Sequence[Config]) -> Path:
    """The folder of the trials' sweep, named by all that determines them."""
    key = json_sha256([identity(of_trial) for of_trial in configs])[:10]
    return Path(configs[0].output_root) / f"{config.method['name']}-{config.model.name}-{key}"


def _run(configs: Sequence[Config], judges: Judges, folder: Path) -> list[Trial]:
    """Run the trials together; where another process runs them, wait for it."""
    from unlearn.sweeps.sweep import Sweep
    from unlearn.sweeps.worker import run_packed, shown_as_running

    say(f"rna.nu=auto: {len(configs)} trials of {configs[0].train.steps} steps: {folder}")
    sweep = Sweep(folder)
    for number, config in enumerate(configs):
        sweep.add(number, [f"rna.nu={config.rna.nu:g}"], config, sweep.folder / str(number))
    sweep.write()
    with shown_as_running(sweep):
        outcomes = run_packed(sweep, range(len(configs)))
    return [_trial(config.rna.nu, outcomes[number], judges) for number, config in enumerate(configs)]


def _trial(nu: float, outcome: Path | Exception, judges: Judges) -> Trial:
    from unlearn.sweeps.search.figures import read_figures

    if isinstance(outcome, Exception):
        return Trial(nu, error=describe(outcome))
    try:
        return Trial(nu, read_figures(outcome, judges.names))
    except UserError as error:
        return Trial(nu, error=str(error))


def _show(trials: Sequence[Trial], rule: Rule, chosen: Trial) -> None:
    """Print the trials, and which of them is chosen."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Column, Table

    heads = [f"{name}, {FIGURES[name].unit}" for name in rule.judges.names]
    columns = [Column(head, justify="right") for head in ("nu", *heads, "forgotten")]
    table = Table(*columns, Column("", overflow="fold"), box=SIMPLE_HEAD, pad_edge=False)
    plain = trials[0]
    for trial in trials:
        cells = ["-"] * (len(heads) + 1)
        if not trial.error:
            figures = [f"{trial.figures[name]:.{3 if rule.judges is TEXTS else 1}f}" for name in rule.judges.names]
            cells = [*figures, f"{100 * rule.forgotten(trial) / rule.forgotten(plain):.0f} %"]
        note = "chosen" if trial is chosen else rule.why_not(trial, plain)
        table.add_row(f"{trial.nu:g}", *cells, escape(note))
    console.print(table)
    none = ": no noise lowers the cost of a forget-token within the bounds" if chosen is plain else ""
    say(f"rna.nu={chosen.nu:g}{none}")


def _say_what_judges(evaluation: EvalConfig, judges: Judges) -> None:
    key = "eval.questions=judging" if judges is QUESTIONS else f"eval.texts.skip={evaluation.texts.skip}"
    say(f"{key}: the run is judged without what has chosen. Runs to compare with it need this key, too.")


def _as_record(trial: Trial) -> dict[str, Any]:
    return {"nu": trial.nu, **trial.figures, **({"error": trial.error} if trial.error else {})}
