"""The package as a stranger meets it: which file needs which, and how long they are."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import tokenprune

ROOT = Path(tokenprune.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
LINES_PER_FILE, LINES_PER_CLASS = 400, 250


def module_of(path: Path) -> str:
    parts = ("tokenprune", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def imports_of(path: Path) -> set[str]:
    """Modules of the package that a file imports, in functions and under TYPE_CHECKING too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return found & MODULES.keys() - {module_of(path)}


def test_no_circle_of_imports():
    graph = {name: imports_of(path) for name, path in MODULES.items()}
    assert len(graph) > 50
    assert graph["tokenprune"]
    while graph:
        ready = {name for name, needed in graph.items() if not needed & graph.keys()}
        assert ready, f"these import each other: {sorted(graph)}"
        for name in ready:
            del graph[name]


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
def test_no_file_and_no_class_is_too_long(path):
    text = path.read_text()
    assert len(text.splitlines()) <= LINES_PER_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            assert (node.end_lineno or 0) - node.lineno < LINES_PER_CLASS, node.name
