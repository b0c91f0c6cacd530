"""Reading the JSON files of a folder, which may be a stranger's: data of a known form, and nothing else."""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field, JsonValue, TypeAdapter, ValidationError

from unlearn.arguments import is_name
from unlearn.errors import UserError

T = TypeVar("T")
LARGEST = 2**63  # of integers
SHOWN_LETTERS = 200  # of a key that a file has
OF_OTHERS = ("wandb",)  # folders of a run that another program writes; nothing is read there


def _name(value: str) -> str:
    if not is_name(value):
        raise ValueError("it must be a name, without slashes and control characters")
    return value


def _ordinary(value: JsonValue) -> JsonValue:
    """Raise ValueError for numbers that Python reads and that a computation cannot take."""
    if isinstance(value, dict):
        for part in value.values():
            _ordinary(part)
    elif isinstance(value, list):
        for part in value:
            _ordinary(part)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("it has a number that is not finite")
    elif isinstance(value, int) and abs(value) >= LARGEST:
        raise ValueError("it has a number that is too large")
    return value


def _inside(value: str) -> str:
    path = PurePosixPath(value)
    if path.is_absolute() or not all(map(is_name, path.parts)):
        raise ValueError("it must be a path below the folder")
    return value


Name = Annotated[str, AfterValidator(_name)]  # of a file, or a part of one
Inside = Annotated[str, AfterValidator(_inside)]  # a relative path without ".."
Integer = Annotated[int, Field(gt=-LARGEST, lt=LARGEST)]
Plain = Annotated[JsonValue, AfterValidator(_ordinary)]
Tree = Annotated[dict[str, JsonValue], AfterValidator(_ordinary)]
TREE: TypeAdapter[dict[str, Any]] = TypeAdapter(Tree)


def read_as(schema: TypeAdapter[T], file: Path) -> T:
    """The content of a JSON file. Raises UserError if it cannot be read, or is not as the schema says."""
    try:
        return schema.validate_json(read_bytes(file), strict=True)
    except ValidationError as error:
        raise UserError(f"{file}: {first_problem(error)}") from None


def checked(schema: TypeAdapter[T], value: Any, file: Path, *key: str) -> T:
    """The part `key` of a JSON file, or all of it. Raises UserError if it is not as the schema says."""
    try:
        return schema.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        raise UserError(f"{file}: {first_problem(error, *key)}") from None


def first_problem(error: ValidationError, *above: str) -> str:
    """The first problem that pydantic found, with its dotted key, and how many more there are."""
    first, *others = error.errors(include_url=False, include_input=False, include_context=False)
    key = ".".join(str(part) for part in (*above, *first["loc"]))[:SHOWN_LETTERS]
    more = f" (and {len(others)} more)" if others else ""
    return f"{f'{key}: ' if key else ''}{first['msg'].removeprefix('Value error, ')}{more}"


def read_bytes(file: Path) -> bytes:
    """The content of a file. Raises UserError if it cannot be read, or is none: reading a pipe would never end."""
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise UserError(f"{file}: it is no regular file.")
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None


def leads_out(path: Path, folder: Path) -> bool:
    """Whether a path in a folder is, through links, outside of it."""
    return not path.resolve().is_relative_to(folder.resolve())


def check_links(folder: Path) -> None:
    """Raise UserError for a link in or below a folder that leads out of it: it would be read or written through."""
    for place, folders, files in os.walk(folder):
        for path in (Path(place, name) for name in (*folders, *files)):
            if path.is_symlink() and leads_out(path, folder):
                raise UserError(f"{path}: this link leads out of {folder} and is not followed: put a copy there.")
        folders[:] = [name for name in folders if name not in OF_OTHERS]
