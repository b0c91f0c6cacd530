"""The space of a search: Hydra's overrides with several values as distributions of Optuna, the others as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep

from unlearn.errors import UserError
from unlearn.sweeps.search.library import optuna

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial

NOT_SEARCHED = {
    "seed": "search.seeds=[0,1,2] runs each trial with several seeds",
    "eval": "all trials are judged by the same evaluation",
}
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Space:
    """`distributions` by key, and the overrides that all trials have.

    A value of a categorical distribution is its text on the command line.
    """

    distributions: Mapping[str, BaseDistribution]
    fixed: Sequence[str]

    @classmethod
    def of(cls, overrides: Sequence[Override]) -> Space:
        """The space of parsed overrides; the last one of a key counts. Raises UserError for what cannot be searched."""
        by_key = {override.get_key_element(): override for override in overrides}
        searched = {key: o for key, o in by_key.items() if o.is_sweep_override()}
        for key in searched:
            for name, instead in NOT_SEARCHED.items():
                if key.lstrip("+") == name or key.lstrip("+").startswith(f"{name}."):
                    raise UserError(f"{key} cannot be searched: {instead}.")
        if not searched:
            raise UserError(
                "A search needs a key with several values, as 'rna.nu=interval(0,4)', 'method.c=2,3,5' or "
                "'train.lr=tag(log,interval(1e-4,1e-2))', or search=NAME, a file of conf/search."
            )
        distributions = {key: _distribution(override) for key, override in searched.items()}
        fixed = [str(o.input_line) for key, o in by_key.items() if key not in searched]
        return cls(distributions, fixed)

    def suggest(self, trial: Trial, key: str) -> None:
        """Draw a trial's value of a key, unless it is known."""
        kinds, of = optuna().distributions, cast(Any, self.distributions[key])
        if isinstance(of, kinds.CategoricalDistribution):
            trial.suggest_categorical(key, of.choices)
        else:
            suggest = trial.suggest_int if isinstance(of, kinds.IntDistribution) else trial.suggest_float
            suggest(key, of.low, of.high, step=of.step, log=of.log)

    def overrides(self, values: Values) -> list[str]:
        """The overrides of a point."""
        return [*self.fixed, *(f"{key}={values[key]}" for key in self.distributions)]

    def first_point(self) -> Values:
        """The lowest or first value of every key."""
        return {
            key: distribution.choices[0] if hasattr(distribution, "choices") else getattr(distribution, "low", None)
            for key, distribution in self.distributions.items()
        }


def _distribution(override: Override) -> BaseDistribution:
    distributions, value, text = optuna().distributions, override.value(), override.input_line
    log = "log" in getattr(value, "tags", ())
    if unknown := set(getattr(value, "tags", ())) - {"log"}:
        raise UserError(f"{text}: unknown tag {', '.join(sorted(unknown))}. Allowed: tag(log, interval(LOW,HIGH)).")
    if log and not isinstance(value, IntervalSweep):
        raise UserError(f"{text}: only an interval can be logarithmic, as tag(log,interval(1e-4,1e-2)).")
    if getattr(value, "shuffle", False):
        raise UserError(f"{text}: a search needs no shuffle().")
    try:
        if isinstance(value, IntervalSweep):
            whole = isinstance(value.start, int) and isinstance(value.end, int)
            kind = distributions.IntDistribution if whole else distributions.FloatDistribution
            return kind(value.start, value.end, log=log)
        if isinstance(value, RangeSweep):
            numbers = list(value.range())
            whole = all(isinstance(number, int) for number in numbers)
            kind = distributions.IntDistribution if whole else distributions.FloatDistribution
            return kind(min(numbers), max(numbers), step=abs(value.step))
        assert isinstance(value, ChoiceSweep) or override.is_discrete_sweep()
        return distributions.CategoricalDistribution(list(override.sweep_string_iterator()))
    except ValueError as error:
        raise UserError(f"{text}: {error}") from None
