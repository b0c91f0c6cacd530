"""Hashes of what results depend on: of values, of files, and of Python code with what it imports."""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import xxhash

LARGE = 1 << 26  # bytes; a larger file is read once in a process, as long as the system says that it is unchanged
CHUNK = 1 << 20
THIS_PACKAGE = "unlearn"  # its results have a version of their own


def json_sha256(value: Any) -> str:
    """SHA-256 of a value written as JSON with sorted keys: 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_hash(file: Path) -> str:
    """XXH3 of the whole content of a file, in 128 bits. It takes no longer than reading the file."""
    about = file.stat()
    if about.st_size <= LARGE:
        return _content_hash(file)
    return _hash_of_large(file.resolve(), about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)


@lru_cache(maxsize=1024)
def _hash_of_large(file: Path, *_state: int) -> str:
    """The hash of a file in this state. The time of its last change cannot be set by hand."""
    return _content_hash(file)


def file_sha256(file: Path) -> str:
    """SHA-256 of the content of a file, which may be larger than the memory."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _content_hash(file: Path) -> str:
    digest, chunk = xxhash.xxh3_128(), memoryview(bytearray(CHUNK))
    with file.open("rb", buffering=0) as stream:
        while size := stream.readinto(chunk):
            digest.update(chunk[:size])
    return digest.hexdigest()


def code_hash(file: Path) -> str:
    """A hash of a Python file and of every module that it imports from its own folder or from a folder of the user's.

    Nothing is run. Packages that are installed are not followed, nor what is imported by a name that the code makes up.
    """
    hashes: dict[Path, str] = {}
    waiting = [file.resolve()]
    while waiting:
        module = waiting.pop()
        if module not in hashes:
            hashes[module] = file_hash(module)
            waiting += _imported(module, [file.resolve().parent, *_users_folders()])
    return json_sha256([hashes[file.resolve()], sorted(hashes.values())])


def _users_folders() -> list[Path]:
    """The folders from which Python imports and that are of no installation."""
    installed = {Path(place).resolve() for place in (sys.prefix, sys.base_prefix)}
    folders = [Path.cwd(), *(Path(place).resolve() for place in sys.path if place)]
    return [folder for folder in dict.fromkeys(folders) if not installed & {folder, *folder.parents}]


def _imported(module: Path, places: list[Path]) -> Iterator[Path]:
    """The files of the modules below `places` that a module imports, anywhere in its code."""
    try:
        nodes = ast.walk(ast.parse(module.read_bytes()))
    except SyntaxError:  # whoever imports it will see
        return
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _files_of(alias.name, places)
        elif isinstance(node, ast.ImportFrom):
            folders = [module.parents[node.level - 1]] if node.level else places
            for alias in node.names:
                yield from _files_of(f"{node.module}.{alias.name}" if node.module else alias.name, folders)


def _files_of(name: str, folders: list[Path]) -> Iterator[Path]:
    """The files of a dotted name and of the packages that it is in, as far as they are below these folders."""
    parts = name.split(".")
    if parts[0] == THIS_PACKAGE:
        return
    for stem in (folder.joinpath(*parts[:n]) for folder in folders for n in range(1, len(parts) + 1)):
        yield from (file for file in (Path(f"{stem}.py"), stem / "__init__.py") if file.is_file())
