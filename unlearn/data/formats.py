"""The formats of a corpus: each yields its documents in order, with their places for error messages.

A corpus is one of
- .jsonl or .json with one object per line, .json with an array, .txt with one document per line; also compressed (.gz,
  .zst, .bz2),
- .csv, .parquet,
- a folder of .txt files with one document each,
- hub:REPOSITORY:CONFIGURATION:SPLIT.

The library datasets reads tables and the hub. It does not read lines here: its errors name no line, and it turns texts
that look like dates into dates.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import json
from collections.abc import Iterator
from glob import escape
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow  # type: ignore[import-untyped]

from unlearn.errors import UserError
from unlearn.storage.files import no_such_file

COMPRESSED = (".gz", ".zst", ".bz2")
SUFFIXES = (".jsonl", ".json", ".txt", ".csv", ".parquet")
HUB = "hub:"
NOTHING = object()  # the value of a row without a document, such as a blank line of plain text


class Row(NamedTuple):
    """An entry of a corpus."""

    value: Any  # a text, a dialogue, NOTHING, or anything else, which is a mistake
    place: str  # "FILE:LINE", "FILE, row N"
    content: bytes  # what the corpus's hash covers


def read_rows(path: str, key: str, column: str) -> Iterator[Row]:
    """Yield the rows of a corpus. If rows have several columns, `column` has the document.

    Raises UserError, with file and line, for a file that does not exist, has another format, or is malformed.
    """
    if path.startswith(HUB):
        return _hub(path, key, column)
    file = Path(path)
    if file.is_dir():
        return _folder(file, key)
    if not file.is_file():
        raise UserError(f"{key}={path}: {no_such_file(path)}")
    suffix = Path(file.stem).suffix if file.suffix in COMPRESSED else file.suffix
    if suffix not in SUFFIXES:
        raise UserError(
            f"{key}={path}: unknown format. Allowed: {', '.join(SUFFIXES)}, a folder of .txt files, or "
            f"{HUB}REPOSITORY:CONFIGURATION:SPLIT."
        )
    if suffix in (".csv", ".parquet"):
        return _table(file, suffix[1:], key, column)
    if suffix == ".json" and _is_array(file, key):
        return _array(file, key, column)
    return _lines(file, key, column if suffix != ".txt" else None)


def read_text(file: Path, key: str) -> str:
    """A file's text with its line ends, without byte order mark. Raises UserError, with file and line, if not UTF-8."""
    return _decoded(file.read_bytes(), key, file)


def _decoded(raw: bytes, key: str, file: Path, line: int = 1) -> str:
    try:
        return raw.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        at = line + raw.count(b"\n", 0, error.start)
        raise UserError(f"{key}: {file}:{at}: not UTF-8 text ({error.reason}).") from None


def _parsed(text: str, key: str, file: Path, line: int = 1) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f"{file}:{line + error.lineno - 1}"
        raise UserError(f"{key}: {at}: not valid JSON ({error.msg}, column {error.colno}).") from None


def _raw_lines(file: Path, key: str) -> Iterator[bytes]:
    """The file's lines, decompressed if its name says so."""
    try:
        with io.BufferedReader(pyarrow.input_stream(str(file), compression="detect")) as lines:
            yield from lines
    except OSError as error:
        raise UserError(f"{key}: {file}: cannot be decompressed ({error}).") from None


def _lines(file: Path, key: str, column: str | None) -> Iterator[Row]:
    """One document per line. In plain text (no column) blank lines are skipped, as in Wikitext-2 (raw)."""
    for number, raw in enumerate(_raw_lines(file, key), start=1):
        place = f"{file}:{number}"
        line = _decoded(raw, key, file, number).removesuffix("\n").removesuffix("\r")
        if line.strip():
            entry = line if column is None else _parsed(line, key, file, number)
            value = line if column is None else _in_column(entry, f"{key}: {place}", column)
            yield Row(value, place, raw)
        elif column is not None and raw.endswith(b"\n"):
            raise UserError(f"{key}: {place}: the line is blank.")
        else:
            yield Row(NOTHING, place, raw)


def _is_array(file: Path, key: str) -> bool:
    lines = (line.removeprefix(codecs.BOM_UTF8).strip() for line in _raw_lines(file, key))
    return next(filter(None, lines), b"").startswith(b"[")


def _array(file: Path, key: str, column: str) -> Iterator[Row]:
    """An array of objects or of texts."""
    raw = b"".join(_raw_lines(file, key))
    yield Row(NOTHING, str(file), raw)
    for number, entry in enumerate(_parsed(_decoded(raw, key, file), key, file), start=1):
        place = f"{file}, entry {number}"
        yield Row(entry if isinstance(entry, str) else _in_column(entry, f"{key}: {place}", column), place, b"")


def _in_column(row: Any, where: str, column: str) -> Any:
    if isinstance(row, dict) and column in row:
        return row[column]
    columns = f"; it has {', '.join(row)}" if isinstance(row, dict) and row else ""
    raise UserError(f'{where}: there is no "{column}"{columns}. Write {{"{column}": "..."}}, or set data.text_column.')


def _folder(folder: Path, key: str) -> Iterator[Row]:
    """Each .txt file is a document. They are read in the order of their names."""
    for file in sorted(folder.glob("*.txt")):
        raw = file.read_bytes()
        text = _decoded(raw, key, file).replace("\r\n", "\n")
        yield Row(text if text.strip() else NOTHING, str(file), hashlib.sha256(raw).digest())


def _table(file: Path, kind: str, key: str, column: str) -> Iterator[Row]:
    import datasets  # takes seconds

    try:
        rows = datasets.load_dataset(kind, data_files=escape(str(file)), split="train", streaming=True)
        for number, row in enumerate(rows, start=1):
            value = _in_column(row, f"{key}: {file}", column)
            yield Row(value, f"{file}, row {number}", repr(value).encode("utf-8", "surrogatepass") + b"\n")
    except UserError:
        raise
    except Exception as error:  # of pandas, pyarrow and datasets, which share no base class
        raise UserError(f"{key}: {file}: cannot be read as {kind}: {error}") from error


def _hub(path: str, key: str, column: str) -> Iterator[Row]:
    """A split of a data set on the hub, without blank documents."""
    import datasets  # takes seconds
    from huggingface_hub.errors import GatedRepoError

    parts = path.split(":")
    if len(parts) != 4 or not all(parts):
        raise UserError(f"{key}={path}: write {HUB}REPOSITORY:CONFIGURATION:SPLIT.")
    _, repository, name, split = parts
    try:
        rows = datasets.load_dataset(repository, name, split=split)
    except Exception as error:  # the hub's errors share no base class
        no_access = (GatedRepoError, datasets.exceptions.DatasetNotFoundError)
        causes = (error, error.__cause__, error.__context__)
        reason = "not found, or you have no access" if any(isinstance(e, no_access) for e in causes) else str(error)
        raise UserError(
            f"{key}={path}: {reason}. If it is gated, ask for access at https://huggingface.co/datasets/{repository} "
            f'and log in with `hf auth login`. Or set {key}=FILE.jsonl, your own copy ({{"text": ...}} per line).'
        ) from error
    for number, row in enumerate(rows):
        value = _in_column(row, f"{key}={path}", column)
        if not isinstance(value, str) or value.strip():
            yield Row(value, f"{repository} row {number}", str(value).encode("utf-8", "surrogatepass") + b"\n")
