"""The page: one self-contained HTML file with tables and figures, and what is missing."""

from __future__ import annotations

import base64
import html
import json
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import altair as alt
import itables
import jinja2
import pandas as pd
import vl_convert

from unlearn.analysis.report.charts import SCREEN
from unlearn.analysis.report.export import as_csv
from unlearn.analysis.report.figure import Figure, Table
from unlearn.analysis.report.material import Material

MANY = 15  # rows: from here on a table is shown in pages, and its columns can be filtered
FIRST = ("trade_off", "settings", "contrasts", "table_1")  # the result comes first,
LAST = ("runs", "unusable")  # and what it is made of last


def page(m: Material, tables: Sequence[Table], figures: Sequence[Figure], *, title: str) -> str:
    """The HTML text."""
    bundle = files(itables) / "html"
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string((files(__package__) / "page.html").read_text(encoding="utf-8"))
    everything: list[Table | Figure] = [*tables, *figures]
    by_name = {part.name: part for part in everything}
    by_name.pop("scores", None)  # its rows are too many
    between = [name for name in by_name if name not in FIRST + LAST]
    parts = [by_name[name] for name in (*FIRST, *between, *LAST) if name in by_name]
    return template.render(
        title=title,
        summary=summary(m),
        warnings=m.warnings,
        parts=parts,
        table_html={part.name: _rows(part) for part in parts if isinstance(part, Table)},
        csv={part.name: csv_link(part.data) for part in parts},
        specs=_script_json({part.name: spec(part) for part in parts if isinstance(part, Figure)}),
        vega=vl_convert.javascript_bundle(),  # type: ignore[call-arg]
        datatables=base64.b64encode((bundle / "dt_bundle.js").read_bytes()).decode(),
        datatables_css=(bundle / "dt_bundle.css").read_text(encoding="utf-8"),
    )


def summary(m: Material) -> list[tuple[str, str]]:
    """What the page is about: (what, how many or which)."""
    counted = Counter(run.status for run in m.runs)
    named = m.about[m.about["setting"].notna()]
    done = [run for run in m.runs if run.done]
    codes = {str((run.record.get("code") or {}).get("commit") or "unknown")[:10] for run in done}
    return [
        ("runs", ", ".join(f"{number} {status}" for status, number in counted.most_common())),
        ("settings", str(named["setting"].nunique())),
        ("methods", _few(named["method"].unique())),
        ("seeds", _few([f"{seed:g}" for seed in sorted(named["seed"].dropna().unique())])),
        ("model", _few(sorted({run.identity["model"]["name"] for run in m.runs if run.identity}))),
        ("code", _few(sorted(codes))),
    ]


def _few(values: Sequence[str]) -> str:
    """All of them, or the first ones and how many there are."""
    return ", ".join(values[:10]) + (f", ... ({len(values)})" if len(values) > 10 else "")


def spec(figure: Figure) -> dict[str, Any]:
    """Vega-Lite's specification for the screen."""
    with alt.data_transformers.enable("default", max_rows=None, consolidate_datasets=True):
        specification = figure.chart(SCREEN).configure(**SCREEN.config()).to_dict()
    return specification | {"usermeta": {"embedOptions": {"downloadFileName": figure.name}}}


def csv_link(data: pd.DataFrame) -> str:
    """A table as an address that holds it."""
    return "data:text/csv;base64," + base64.b64encode(as_csv(data).encode()).decode()


def _script_json(content: Any) -> str:
    """JSON that may stand inside a script element."""
    return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")


def _rows(table: Table) -> str:
    """A table, with a style for its columns (not for each cell: there may be ten thousand rows)."""
    data = table.data
    head = "".join(f'<th scope="col">{html.escape(str(column))}</th>' for column in data)
    lines = []
    for values in data.itertuples(index=False, name=None):
        lines.append(f"<tr>{''.join(map(_cell, values))}</tr>")
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


def _cell(value: Any) -> str:
    """A cell; what is missing is sorted before everything else."""
    if pd.isna(value) or value == "":
        return '<td data-order="">–</td>'
    text = format(value, ".4g") if isinstance(value, float) else str(value)
    return f"<td>{html.escape(text)}</td>"
