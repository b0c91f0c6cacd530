"""The layout of unlearn/: which room may import which, what each says of itself, and that tests/ mirrors it."""

import ast
import re
import tomllib

import pytest
from importlinter.cli import lint_imports

from tests.conftest import ROOT

ROOMS = sorted(file.parent for file in (ROOT / "unlearn").glob("*/__init__.py"))


def docstring(package):
    return ast.get_docstring(ast.parse((package / "__init__.py").read_text()))


def test_a_room_imports_only_what_the_contracts_in_pyproject_allow(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert lint_imports(config_filename="pyproject.toml", no_cache=True, no_logo=True) == 0


def test_the_front_page_lists_the_rooms_in_the_order_of_the_contract():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = [name for layer in contracts[0]["layers"] for name in layer.split(" | ")]
    [listed] = re.findall(r"from top to bottom: ([\w, \n]+)\.", docstring(ROOT / "unlearn"))
    assert re.split(r",\s", listed) == layers


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_a_room_says_what_does_not_belong_there(room):
    assert "Not here:" in docstring(room)


def test_hydras_plugins_import_only_the_room_that_they_stand_in():
    """They are outside of the package that the contracts look at."""
    for file in (ROOT / "unlearn/sweeps/plugins").rglob("*.py"):
        nodes = [
            node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        imported = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in nodes}
        assert {name for name in imported if name.startswith("unlearn")} <= {"unlearn.sweeps"}, file


def test_tests_mirror_the_rooms():
    """What needs all rooms stands in tests/ itself."""
    tested = {folder.name for folder in (ROOT / "tests").iterdir() if any(folder.glob("test_*.py"))}
    assert tested == {room.name for room in ROOMS} | {"bench"}
