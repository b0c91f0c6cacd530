"""The files that a corpus can be: their documents, one at a time, each with the place where it stands.

.jsonl (an object on each line; .json too), .json (an array of objects), .txt (a document on each line), .csv, .parquet,
the first three also compressed (.gz, .zst, .bz2); or a folder of .txt files, a document each.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from glob import escape
from pathlib import Path
from typing import Any

import pyarrow  # type: ignore[import-untyped]

from unlearn.errors import UserError

COMPRESSED = (".gz", ".zst", ".bz2")
SUFFIXES = (".jsonl", ".json", ".txt", ".csv", ".parquet")
MARK = "\ufeff"  # the byte order mark that Windows programs write first


def file_rows(path: str, key: str, column: str, digest: hashlib._Hash | None) -> Iterator[tuple[Any, str]]:
    """Yield what each document's `column` holds, not yet checked to be text, and its place.

    Raises UserError, with file and line, for a file that is not there, of another kind, or malformed.
    """
    file = Path(path)
    if file.is_dir():
        return _folder(file, key, digest)
    if not file.is_file():
        raise UserError(f"{key}={path}: there is no such file.")
    suffix = Path(file.stem).suffix if file.suffix in COMPRESSED else file.suffix
    if suffix not in SUFFIXES:
        raise UserError(f"{key}={path}: cannot be read. Allowed are a folder of .txt files, {', '.join(SUFFIXES)}.")
    if suffix in (".csv", ".parquet"):
        return _table(file, suffix[1:], key, column, digest)
    if suffix == ".json" and _is_array(file):
        return _array(file, key, column, digest)
    return _lines(file, key, column if suffix != ".txt" else None, digest)


def _open(file: Path) -> io.BufferedReader:
    """The file's bytes, decompressed if its name says so."""
    return io.BufferedReader(pyarrow.input_stream(str(file), compression="detect"))


def _lines(file: Path, key: str, column: str | None, digest: hashlib._Hash | None) -> Iterator[tuple[Any, str]]:
    """One document on each line. In plain text (no column), blank lines are skipped, as in Wikitext-2 (raw)."""
    with _open(file) as lines:
        for number, raw in enumerate(_whole(lines, file, key), start=1):
            if digest is not None:
                digest.update(raw)
            place = f"{file}:{number}"
            line = _decoded(raw, place, key)
            line = line.removeprefix(MARK) if number == 1 else line
            if line.strip():
                yield line if column is None else _of_object(_parsed(line, place, key), place, key, column), place
            elif column is not None and raw.endswith(b"\n"):
                raise UserError(f"{key}: {place}: the line is blank.")


def _whole(lines: io.BufferedReader, file: Path, key: str) -> Iterator[bytes]:
    """The lines, as far as they can be decompressed."""
    try:
        yield from lines
    except OSError as error:
        raise UserError(f"{key}: {file}: cannot be decompressed ({error}).") from None


def read_text(file: Path, key: str) -> str:
    """A file's text with its line ends, without byte order mark. Raises UserError, with file and line, if not UTF-8."""
    raw = file.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{key}: {file}:{line}: not UTF-8 text ({error.reason}).") from None


def _decoded(raw: bytes, place: str, key: str) -> str:
    try:
        return raw.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise UserError(f"{key}: {place}: not UTF-8 text ({error.reason}).") from None


def _parsed(line: str, place: str, key: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{key}: {place}: not valid JSON ({error.msg}, column {error.colno}).") from None


def _of_object(row: Any, place: str, key: str, column: str) -> Any:
    if not isinstance(row, dict) or column not in row:
        among = f" among {', '.join(map(str, row))}" if isinstance(row, dict) and row else ""
        looks = f'A line looks like {{"{column}": "..."}}.'
        raise UserError(f'{key}: {place}: there is no "{column}"{among} (data.text_column). {looks}')
    return row[column]


def _is_array(file: Path) -> bool:
    """Whether a .json file begins like an array; a file of objects is read line by line."""
    with _open(file) as content:
        return content.read(1024).removeprefix(MARK.encode()).lstrip().startswith(b"[")


def _array(file: Path, key: str, column: str, digest: hashlib._Hash | None) -> Iterator[tuple[Any, str]]:
    with _open(file) as content:
        raw = b"".join(_whole(content, file, key))
    if digest is not None:
        digest.update(raw)
    try:
        rows = json.loads(raw.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UserError(f"{key}: {file}:{error.lineno}: not valid JSON ({error.msg}, column {error.colno}).") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{key}: {file}: not UTF-8 text ({error.reason}).") from None
    for number, row in enumerate(rows, start=1):
        place = f"{file}, entry {number}"
        yield row if isinstance(row, str) else _of_object(row, place, key, column), place


def _table(file: Path, kind: str, key: str, column: str, digest: hashlib._Hash | None) -> Iterator[tuple[Any, str]]:
    """Rows by the library datasets, which streams them, and takes names for patterns."""
    import datasets

    try:
        rows = datasets.load_dataset(kind, data_files=escape(str(file)), split="train", streaming=True)
        for number, row in enumerate(rows, start=1):
            place = f"{file}, row {number}"
            if column not in row:
                raise UserError(
                    f"{key}: {file}: there is no column {column!r} among {', '.join(row)} (data.text_column)."
                )
            if digest is not None:
                digest.update(repr(row[column]).encode("utf-8", "surrogatepass") + b"\n")
            yield row[column], place
    except UserError:
        raise
    except Exception as error:  # of pandas, pyarrow and datasets, which share no base class
        raise UserError(f"{key}: {file}: cannot be read as {kind}: {error}") from error


def _folder(folder: Path, key: str, digest: hashlib._Hash | None) -> Iterator[tuple[Any, str]]:
    """Each .txt file is a document, in the order of their names."""
    for file in sorted(folder.glob("*.txt")):
        raw = file.read_bytes()
        if digest is not None:
            digest.update(hashlib.sha256(raw).digest())
        text = _decoded(raw, str(file), key).removeprefix(MARK).replace("\r\n", "\n")
        if text.strip():
            yield text, str(file)
