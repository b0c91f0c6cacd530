"""Parquet files of rows with a fixed schema."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as parquet  # type: ignore[import-untyped]

from unlearn.errors import UserError
from unlearn.storage.files import write_atomically


def write_rows(file: Path, rows: Sequence[dict[str, Any]], schema: pa.Schema) -> None:
    """Replace a file by these rows."""
    buffer = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows, schema), buffer)
    write_atomically(file, buffer.getvalue())


def read_rows(file: Path, schema: pa.Schema) -> list[dict[str, Any]]:
    """The rows of a file. Raises UserError if it cannot be read, or does not have the schema's columns and types."""
    try:
        table = parquet.read_table(file)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file}: not a readable Parquet file ({error}).") from None
    if not table.schema.equals(schema):
        raise UserError(f"{file}: its columns are not those of this version: {', '.join(schema.names)}.")
    return table.to_pylist()
