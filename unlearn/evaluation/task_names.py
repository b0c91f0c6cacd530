"""Whether lm-eval has a task of some name, told without importing lm-eval, which takes as long as all the rest."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from unlearn.errors import UserError, nearest

# How a file names its task, group or tag, as a rule.
NAMED = re.compile(rb"^[\"']?(?:task|group|tag)[\"']?:[ \t]*[\"']?([\w.+-]+)", re.MULTILINE)
NO_TASKS = (".py", ".pyc", ".md")  # files beside those of tasks, some of which have no suffix


def check_task_names(names: Sequence[str], include_path: str | None) -> None:
    """Raise UserError for the first name that no file of lm-eval's tasks, nor one in `include_path`, contains.

    A name that some file contains may still be no task's, which shows when the tasks are loaded.
    """
    for name in names:
        if not _is_known(name, include_path):
            raise unknown_task(name, _usual_names())


def unknown_task(name: str, names: Iterable[str]) -> UserError:
    """The error for a task that lm-eval lacks, with the nearest of these names."""
    return UserError(f"eval.tasks: unknown lm-eval task {name!r}.{nearest(name, names)}")


def tasks_folder() -> Path:
    """The folder of lm-eval's own tasks, a folder for each family."""
    package = find_spec("lm_eval")
    assert package is not None  # it is a dependency
    assert package.origin is not None
    return Path(package.origin).parent / "tasks"


@lru_cache
def _is_known(name: str, include_path: str | None) -> bool:
    word = re.compile(rb"(?<![\w-])" + re.escape(name.encode()) + rb"(?![\w-])")
    folders = ([] if include_path is None else [Path(include_path)]) + _lm_evals_folders(name)
    return any(word.search(file.read_bytes()) for folder in folders for file in _files(folder))


def _lm_evals_folders(name: str = "") -> list[Path]:
    """The folders of lm-eval's tasks, first those that the name begins with."""
    folders = sorted(folder for folder in tasks_folder().iterdir() if folder.is_dir())
    return sorted(folders, key=lambda folder: not name.startswith(folder.name))


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in folder.rglob("*") if file.suffix not in NO_TASKS and file.is_file())


@lru_cache
def _usual_names() -> set[str]:
    found = (NAMED.findall(file.read_bytes()) for folder in _lm_evals_folders() for file in _files(folder))
    return {name.decode() for names in found for name in names}
