"""The packages as a stranger meets them: which file needs which, and how long they are."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import geollava
import tokenprune

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import structure  # noqa: E402

PACKAGES = {
    package.__name__: structure.Package.from_folder(Path(package.__file__).parent)
    for package in (tokenprune, geollava)
}
GEOLLAVA = PACKAGES["geollava"]
ENTRIES = 13  # at geollava's top level
# An image's way: a room imports from floors beneath its own. `geollava` is the package's own
# `__init__`, whose names the commands are the first to use.
FLOORS = [
    {"moved"},
    {"common"},
    {"imagery"},
    {"model"},
    {"answering"},
    {"training", "scenes", "serving"},
    {"app", "evaluate"},
    {"geollava"},
    {"commands"},
    {"__main__"},
]
# What geollava may use of tokenprune: applying a method, saying what a host is, and errors over a
# model hub. What reduces tokens is for one file alone.
OPERATORS_IN = "geollava.model.token_reduction"
FROM_TOKENPRUNE = {
    *(f"tokenprune.{name}" for name in ("Adapter", "Handle", "ImageLayout", "TokenGrid")),
    *(f"tokenprune.{name}" for name in ("apply", "list_methods", "version", "hosts", "hub")),
}


@pytest.mark.parametrize("package", PACKAGES.values(), ids=PACKAGES)
def test_no_circle_of_imports(package):
    assert len(package.graph) > 50
    assert package.graph[package.name]
    assert structure.circles(package.graph) == []


@pytest.mark.parametrize("package", PACKAGES.values(), ids=PACKAGES)
def test_no_file_and_no_class_is_too_long(package):
    assert package.long_files() == []
    assert package.long_classes() == []


def test_the_house_has_few_entries():
    assert len(GEOLLAVA.entries) <= ENTRIES, GEOLLAVA.entries


def test_every_room_has_its_floor():
    assert sorted(room for floor in FLOORS for room in floor) == sorted(GEOLLAVA.rooms)


@pytest.mark.parametrize(
    ("height", "room"), [(n, room) for n, floor in enumerate(FLOORS) for room in sorted(floor)]
)
def test_rooms_import_only_downward(height, room):
    below = {name for floor in FLOORS[:height] for name in floor}
    assert GEOLLAVA.rooms[room] <= below


def test_tokenprune_knows_nothing_of_geollava():
    for module, text in PACKAGES["tokenprune"].modules.items():
        for names in structure.imports_of(text, module):
            assert names[0].split(".")[0] != "geollava", module


def used_of_tokenprune(module, text):
    """First names below tokenprune that a file imports, or looks up in `import tokenprune`."""
    for names in structure.imports_of(text, module):
        if names[0] != "tokenprune" and names[0].startswith("tokenprune."):
            yield ".".join(names[0].split(".")[:2])
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", None) == "tokenprune":
            yield f"tokenprune.{node.attr}"


def test_one_file_imports_the_operators():
    users = {name: set(used_of_tokenprune(name, text)) for name, text in GEOLLAVA.modules.items()}
    beyond = {module: used - FROM_TOKENPRUNE for module, used in users.items()}
    assert {module for module, used in beyond.items() if used} == {OPERATORS_IN}, beyond
