"""A figure and a table of a report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import altair as alt
import pandas as pd

from unlearn.analysis.report.charts import Look

Chart: TypeAlias = alt.Chart | alt.LayerChart | alt.ConcatChart | alt.VConcatChart


@dataclass(frozen=True)
class Figure:
    """`chart` draws it in a look; `data` is its table."""

    name: str
    title: str
    caption: str
    data: pd.DataFrame
    chart: Callable[[Look], Chart]


@dataclass(frozen=True)
class Table:
    """A table whose columns are its headings; `note` says how to read it. The first `keys` columns name a row."""

    name: str
    title: str
    note: str
    data: pd.DataFrame
    text: frozenset[str] = field(default_factory=frozenset)  # columns of running text
    keys: int = 1
