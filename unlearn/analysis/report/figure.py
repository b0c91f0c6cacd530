"""A figure: what it is called, what it says, the table behind it, and how it is drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import altair as alt
import pandas as pd

from unlearn.analysis.report.charts import Look

Chart: TypeAlias = alt.Chart | alt.LayerChart | alt.ConcatChart


@dataclass(frozen=True)
class Figure:
    """`chart` draws it in a look; `data` is the table behind it. Where there is nothing, `caption` says why."""

    name: str
    title: str
    caption: str
    data: pd.DataFrame
    chart: Callable[[Look], Chart] | None = None
