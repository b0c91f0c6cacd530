"""Figures as PDF and PNG in paper style with their data, and tables as Markdown, LaTeX or CSV."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from shutil import get_terminal_size
from textwrap import fill
from typing import Any

import altair as alt
import pandas as pd
import vl_convert

from unlearn.analysis.report.charts import PAPER
from unlearn.analysis.report.figure import Figure, Table
from unlearn.screen import one_line, plain
from unlearn.storage.files import write_atomically

PNG_SCALE = 4  # pixels for each point: about 300 dots an inch
FORMULA = re.compile(r"[=+\-@]")  # how a cell begins that a spreadsheet would compute
DIFFERENCE = re.compile(r"[+-][\d.]+( \([+-][\d.]+ \.\. [+-][\d.]+\))?( q)?")  # a number, with its interval


def write_figures(folder: Path, figures: Iterable[Figure]) -> int:
    """Write NAME.pdf, NAME.png and NAME.csv of each figure; returns the number of figures."""
    count = 0
    folder.mkdir(parents=True, exist_ok=True)
    for figure in figures:
        with alt.data_transformers.enable("default", max_rows=None):
            spec = figure.chart(PAPER).configure(**PAPER.config()).to_dict()
        write_atomically(folder / f"{figure.name}.pdf", vl_convert.vegalite_to_pdf(spec))
        write_atomically(folder / f"{figure.name}.png", vl_convert.vegalite_to_png(spec, scale=PNG_SCALE))
        write_atomically(folder / f"{figure.name}.csv", as_csv(figure.data))
        count += 1
    return count


def write_table(table: Table, kind: str, output: Path | None) -> None:
    """A table as `kind` (md, latex or csv) into a file, or on the terminal."""
    terminal = output is None and sys.stdout.isatty()
    write_text(as_text(table, kind, get_terminal_size().columns if terminal else None), output)


def write_text(text: str, output: Path | None) -> None:
    """Text into a file, or on the terminal, without control characters."""
    if output is None:
        sys.stdout.write(plain(text))
    else:
        write_atomically(output, plain(text))


def as_csv(data: pd.DataFrame) -> str:
    """Data as CSV. Text of runs is data: on one line, without control characters, and never a formula."""
    return _of_cells(data, _csv).to_csv(index=False)


def as_text(table: Table, kind: str, width: int | None = None) -> str:
    """A table with its title and note, CSV without. Markdown is split into several tables where a `width` is given."""
    if kind == "csv":
        return as_csv(table.data)
    if kind == "md":
        data = _of_cells(table.data, _markdown)
        shown = data.astype(object).where(data.notna(), None)  # tabulate knows None as missing, not NaN
        parts = [shown] if width is None else _parts(shown, table.keys, width)
        note = one_line(table.note)
        parts_and_note = [*map(_table, parts), note if width is None else fill(note, width)]
        return "\n\n".join([f"### {one_line(table.title)}", *parts_and_note]) + "\n"
    data = _of_cells(table.data, _latex)
    latex = data.to_latex(index=False, na_rep="--", float_format="%.4g")
    return f"% {one_line(table.title)}\n% {one_line(table.note)}\n{latex}"


def _table(data: pd.DataFrame) -> str:
    return data.to_markdown(index=False, missingval="–")


def _parts(data: pd.DataFrame, keys: int, width: int) -> list[pd.DataFrame]:
    """The table in parts that fit a terminal, if they can. Each begins with the columns that name a row."""
    names, parts = list(data)[:keys], [list(data)[: keys + 1]]
    for column in list(data)[keys + 1 :]:
        if len(_table(data[[*parts[-1], column]]).partition("\n")[0]) > width:
            parts.append(names)
        parts[-1] = [*parts[-1], column]
    return [data[columns] for columns in parts]


def _of_cells(data: pd.DataFrame, escape: Any) -> pd.DataFrame:
    data = data.rename(columns=lambda name: escape(str(name)))
    return data.map(lambda value: escape(value) if isinstance(value, str) else value)


def _csv(text: str) -> str:
    line = one_line(text)
    return f"'{line}" if FORMULA.match(line) and not DIFFERENCE.fullmatch(line) else line


def _markdown(text: str) -> str:
    return one_line(text).replace("|", "\\|")


def _latex(text: str) -> str:
    signs = {"\\": r"\textbackslash{}", "±": r"$\pm$", "ν": r"$\nu$", "β": r"$\beta$", "γ": r"$\gamma$", "–": "--"}
    signs |= {"·": r"$\cdot$", "↑": r"$\uparrow$"}
    signs |= {sign: f"\\{sign}" for sign in "&%$#_{}"} | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(signs.get(letter, letter) for letter in one_line(text))
