"""The layout of unlearn/: which room may import which, what each says of itself, and that tests/ mirrors it."""

import ast

import pytest
from importlinter.cli import lint_imports

from tests.conftest import ROOT

ROOMS = sorted(file.parent for file in (ROOT / "unlearn").glob("*/__init__.py"))


def test_a_room_imports_only_what_the_contracts_in_pyproject_allow(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert lint_imports(config_filename="pyproject.toml", no_cache=True, no_logo=True) == 0


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_a_room_says_what_it_is_for_in_a_few_lines(room):
    said = ast.get_docstring(ast.parse((room / "__init__.py").read_text()))
    assert 3 <= len(said.splitlines()) <= 6
    assert "Not here:" in said


def test_the_front_page_names_all_rooms():
    said = ast.get_docstring(ast.parse((ROOT / "unlearn" / "__init__.py").read_text()))
    assert [room.name for room in ROOMS if room.name not in said] == []


def test_tests_mirror_the_rooms():
    """What needs all rooms stands in tests/ itself."""
    tested = {folder.name for folder in (ROOT / "tests").iterdir() if any(folder.glob("test_*.py"))}
    assert tested == {room.name for room in ROOMS} | {"bench"}
