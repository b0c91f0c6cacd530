"""The settings of a search: the keys `search.*` (conf/search)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from unlearn.config.schema import Config
from unlearn.errors import UserError
from unlearn.storage.schema import first_problem
from unlearn.sweeps.search.figures import Direction, check_names, defaults


class SearchSettings(BaseModel):
    """How points are asked for and judged. conf/search/default.yaml explains each key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    space: dict[str, str | int | float | bool | None] = {}
    trials: Annotated[int, Field(gt=0)]
    generation: Annotated[int, Field(gt=0)]
    sampler: Literal["tpe", "nsga2", "random"]
    sampler_seed: Annotated[int, Field(ge=0)]
    seeds: Annotated[list[int], Field(min_length=1)] | None = None
    of: Literal["mean", "worst"]
    objectives: Annotated[dict[str, Direction], Field(min_length=1)] | None = None
    bounds: dict[str, FiniteFloat] | None = None

    @classmethod
    def read(cls, given: Any) -> SearchSettings:
        """The settings. Raises UserError for a wrong one, and for an unknown name of a figure."""
        try:
            settings = cls.model_validate(given)
        except ValidationError as error:
            raise UserError(first_problem(error, "search")) from None
        check_names("search.objectives", settings.objectives or {})
        check_names("search.bounds", settings.bounds or {})
        if settings.seeds is not None and len(set(settings.seeds)) < len(settings.seeds):
            raise UserError(f"search.seeds={settings.seeds}: a seed is there twice.")
        return settings

    def completed(self, config: Config) -> SearchSettings:
        """With objectives, bounds and seeds. Raises UserError for figures that the evaluation does not measure."""
        objectives, bounds = self.objectives, self.bounds
        if objectives is None:
            objectives, of_questions = defaults(config)
            bounds = of_questions if bounds is None else bounds
        bounds = bounds or {}
        check_names("search.objectives", objectives, config)
        check_names("search.bounds", bounds, config)
        return self.model_copy(
            update={"objectives": objectives, "bounds": bounds, "seeds": self.seeds or [config.seed]}
        )

    @property
    def judged(self) -> list[str]:
        """The names of all figures that count."""
        return list(dict.fromkeys([*(self.objectives or {}), *(self.bounds or {})]))
