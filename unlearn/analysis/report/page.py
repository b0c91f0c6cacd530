"""The page: one self-contained HTML file with tables and figures, and what is missing."""

from __future__ import annotations

import base64
import html
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from typing import Any

import altair as alt
import itables
import jinja2
import pandas as pd
import vl_convert

from unlearn.analysis.report.charts import SCREEN
from unlearn.analysis.report.figure import Figure
from unlearn.analysis.report.material import Material
from unlearn.analysis.report.tables import TABLES, Table

MANY = 15  # rows: from here on a table is shown in pages, and its columns can be filtered
TENTHS = re.compile(",|difference|drop|gain")  # headings of percentages and points


def page(m: Material, tables: Sequence[Table], figures: Sequence[Figure], *, title: str) -> str:
    """The HTML text."""
    bundle = files(itables) / "html"
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string((files(__package__) / "page.html").read_text(encoding="utf-8"))
    shown = {table.name: table for table in tables if table.name != "accuracies"}  # its rows are too many
    return template.render(
        title=title,
        summary=summary(m),
        warnings=m.warnings,
        tables=shown,
        more=[table for name, table in shown.items() if name not in TABLES],
        figures=figures,
        table_html={name: _rows(table) for name, table in shown.items()},
        csv={name: csv_link(data) for name, data in _data(shown.values(), figures)},
        specs=_script_json({f.name: spec(f) for f in figures if f.chart is not None}),
        vega=vl_convert.javascript_bundle(),  # type: ignore[call-arg]
        datatables=base64.b64encode((bundle / "dt_bundle.js").read_bytes()).decode(),
        datatables_css=(bundle / "dt_bundle.css").read_text(encoding="utf-8"),
    )


def _data(tables: Iterable[Table], figures: Iterable[Figure]) -> Iterator[tuple[str, pd.DataFrame]]:
    for table in tables:
        yield table.name, table.data
    for figure in figures:
        yield figure.name, figure.data


def summary(m: Material) -> list[tuple[str, str]]:
    """What the page is about: (what, how many or which)."""
    counted = Counter(run.status for run in m.runs)
    known = m.about[m.about["setting"] != ""]
    done = [run for run in m.runs if run.done]
    codes = {str((run.record.get("code") or {}).get("commit") or "unknown")[:10] for run in done}
    return [
        ("runs", ", ".join(f"{number} {status}" for status, number in counted.most_common())),
        ("settings", str(known["setting"].nunique())),
        ("methods", _few(known["method"].unique())),
        ("seeds", _few([f"{seed:g}" for seed in sorted(known["seed"].unique())])),
        ("model", _few(sorted({run.identity["model"]["name"] for run in m.runs if run.identity}))),
        ("code", _few(sorted(codes))),
    ]


def _few(values: Sequence[str]) -> str:
    """All of them, or the first ones and how many there are."""
    return ", ".join(values[:10]) + (f", ... ({len(values)})" if len(values) > 10 else "")


def spec(figure: Figure) -> dict[str, Any]:
    """Vega-Lite's specification for the screen."""
    assert figure.chart is not None
    with alt.data_transformers.enable("default", max_rows=None, consolidate_datasets=True):
        found = figure.chart(SCREEN).configure(**SCREEN.config()).to_dict()
    return found | {"usermeta": {"embedOptions": {"downloadFileName": figure.name}}}


def csv_link(data: pd.DataFrame) -> str:
    """A table as an address that holds it."""
    return "data:text/csv;base64," + base64.b64encode(data.to_csv(index=False).encode()).decode()


def _script_json(content: Any) -> str:
    """JSON that may stand inside a script element."""
    return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")


def _rows(table: Table) -> str:
    """A table, with a style for its columns (not for each cell: there may be ten thousand rows)."""
    data = table.data
    head = "".join(f'<th scope="col">{html.escape(str(column))}</th>' for column in data)
    lines = []
    for values in data.itertuples(index=False, name=None):
        cells = (_cell(column, value) for column, value in zip(data.columns, values, strict=True))
        lines.append(f"<tr>{''.join(cells)}</tr>")
    size = "many" if len(data) > MANY else "few"
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<style>{_columns(table)}</style><table id="{table.name}" class="compact {size}">{body}</table>'


def _columns(table: Table) -> str:
    """Numbers to the right, running text in lines of its own."""
    styles = []
    for place, column in enumerate(table.data, start=1):
        cell = f"#{table.name} :is(td, th):nth-child({place})"
        if pd.api.types.is_numeric_dtype(table.data[column]):
            styles.append(f"{cell} {{text-align: right; font-variant-numeric: tabular-nums}}")
        elif column in table.text:
            styles.append(f"{cell} {{white-space: normal; min-width: 14rem; overflow-wrap: anywhere}}")
    return "".join(styles)


def _cell(column: str, value: Any) -> str:
    """A cell; what is missing is sorted before everything else."""
    if value is None or value == "" or (isinstance(value, float) and pd.isna(value)):
        return '<td data-order="">–</td>'
    kind = ".1f" if TENTHS.search(column) else ".2g" if column.startswith("p ") else "g"
    text = format(value, kind) if isinstance(value, float) else str(value)
    return f"<td>{html.escape(text)}</td>"
