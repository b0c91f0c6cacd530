"""A figure: its name, title, caption, data, and the function that draws it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import altair as alt
import pandas as pd

from unlearn.analysis.report.charts import Look

Chart: TypeAlias = alt.Chart | alt.LayerChart | alt.FacetChart | alt.ConcatChart


@dataclass(frozen=True)
class Figure:
    """`chart` draws it in a look; `data` is its table. If it is empty, `caption` says why."""

    name: str
    title: str
    caption: str
    data: pd.DataFrame
    chart: Callable[[Look], Chart] | None = None
