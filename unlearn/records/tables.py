"""Parquet files of rows with a fixed schema."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as compute  # type: ignore[import-untyped]
import pyarrow.parquet as parquet  # type: ignore[import-untyped]

from unlearn.errors import UserError
from unlearn.storage.files import write_atomically
from unlearn.storage.schema import read_bytes


def write_rows(file: Path, rows: Sequence[dict[str, Any]], schema: pa.Schema) -> None:
    """Replace a file by these rows."""
    buffer = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows, schema), buffer)
    write_atomically(file, buffer.getvalue())


def read_rows(
    file: Path,
    schema: pa.Schema,
    required: Sequence[str],
    where: Mapping[str, str] | None = None,
    *,
    later: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """The rows of a file; with `where`, those that have these values in these columns.

    A file may lack the columns `later`, the schema's last ones: their cells are empty.

    Raises UserError if it cannot be read, does not have the schema's columns and types, or has an empty cell in one of
    the `required` columns.
    """
    content = pa.BufferReader(read_bytes(file))
    try:
        # No threads: those of pyarrow hold Python's memory and may outlive the interpreter, which then aborts.
        table = parquet.ParquetFile(content, pre_buffer=False).read(use_threads=False)
        table.validate(full=True)
        for column, value in (where or {}).items():
            table = table.filter(compute.equal(table[column], value))
        for column in later:
            if column not in table.column_names:
                table = table.append_column(schema.field(column), pa.nulls(len(table), schema.field(column).type))
        rows = table.to_pylist()
    except (OSError, ValueError, pa.ArrowException) as error:  # ValueError: text that is no UTF-8
        raise UserError(f"{file}: not a readable Parquet file ({error}).") from None
    if not table.schema.equals(schema):
        raise UserError(f"{file}: its columns are not those of this version: {', '.join(schema.names)}.")
    for column in required:
        if table[column].null_count:
            raise UserError(f"{file}: a row has no {column}.")
    return rows
