"""Reads the file of an offline W&B run, which `wandb sync` will send. The package wandb has no reader in Python.

The file is LevelDB's log format behind a header of 7 bytes: blocks of 32 KiB; fragments with checksum (4 bytes),
length (2) and kind (1: whole, 2: first, 3: middle, 4: last), of protocol buffer messages.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

BLOCK, HEADER = 32768, 7


def records(file: Path) -> Iterator[Record]:
    """All complete records. The log of a killed process may end within one."""
    raw, at, message = file.read_bytes(), HEADER, b""
    while at + HEADER <= len(raw):
        if BLOCK - at % BLOCK < HEADER:  # no room for a fragment: the rest of the block is padding
            at += BLOCK - at % BLOCK
            continue
        length, kind = struct.unpack("<HB", raw[at + 4 : at + HEADER])
        message += raw[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if at > len(raw):
            return
        if kind in (1, 4):
            yield Record.FromString(message)
            message = b""


def rows(records: Iterable[Record]) -> Iterator[dict[str, Any]]:
    """The logged rows."""
    for record in records:
        if record.WhichOneof("record_type") == "history":
            yield {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
