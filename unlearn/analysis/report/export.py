"""Figures as PDF and PNG in paper style with their data, and tables as Markdown, LaTeX or CSV."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import altair as alt
import vl_convert

from unlearn.analysis.report.charts import PAPER
from unlearn.analysis.report.figure import Figure
from unlearn.analysis.report.tables import Table
from unlearn.screen import plain
from unlearn.storage.files import write_atomically

PNG_SCALE = 4  # pixels for each point: about 300 dots an inch


def write_figures(folder: Path, figures: Iterable[Figure]) -> int:
    """Write NAME.pdf, NAME.png and NAME.csv of each figure that has data; returns the number of figures."""
    count = 0
    for figure in figures:
        if figure.chart is None:
            continue
        with alt.data_transformers.enable("default", max_rows=None):
            spec = figure.chart(PAPER).configure(**PAPER.config()).to_dict()
        write_atomically(folder / f"{figure.name}.pdf", vl_convert.vegalite_to_pdf(spec))
        write_atomically(folder / f"{figure.name}.png", vl_convert.vegalite_to_png(spec, scale=PNG_SCALE))
        write_atomically(folder / f"{figure.name}.csv", figure.data.to_csv(index=False))
        count += 1
    return count


def write_table(table: Table, kind: str, output: Path | None) -> None:
    """A table as `kind` (md, latex or csv) into a file, or on the terminal."""
    text = as_text(table, kind)
    if output is None:
        sys.stdout.write(plain(text))
    else:
        write_atomically(output, text)


def as_text(table: Table, kind: str) -> str:
    """A table with its title and note, CSV without."""
    if kind == "csv":
        return table.data.to_csv(index=False)
    if table.data.empty:
        return f"{table.title}\n\n{table.note}\n" if kind == "md" else f"% {table.title}: {table.note}\n"
    escape = _latex if kind == "latex" else _markdown
    data = table.data.rename(columns=escape).map(lambda value: escape(value) if isinstance(value, str) else value)
    if kind == "md":
        shown = data.astype(object).where(data.notna(), None)  # tabulate knows None as missing, not NaN
        return f"### {table.title}\n\n{shown.to_markdown(index=False, missingval='–')}\n\n{table.note}\n"
    return f"% {table.title}\n% {table.note}\n{data.to_latex(index=False, na_rep='--', float_format='%.4g')}"


def _markdown(text: str) -> str:
    """Escape text for a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def _latex(text: str) -> str:
    """Escape text for LaTeX."""
    signs = {"\\": r"\textbackslash{}", "±": r"$\pm$", "ν": r"$\nu$", "β": r"$\beta$", "γ": r"$\gamma$", "–": "--"}
    signs |= {"·": r"$\cdot$", "↑": r"$\uparrow$"}
    signs |= {sign: f"\\{sign}" for sign in "&%$#_{}"} | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(signs.get(letter, letter) for letter in text)
