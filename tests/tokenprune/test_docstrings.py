"""Each method and each operator says its formula, its cost and where it ends, in its docstring."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import tokenprune.methods
from tokenprune import method_class, ops

METHODS = sorted(path.stem for path in Path(tokenprune.methods.__path__[0]).glob("[!_]*.py"))
OPERATORS = [name for name in ops.__all__ if inspect.isfunction(getattr(ops, name))]


def sections(documented: object) -> set[str]:
    doc = inspect.getdoc(documented) or ""
    return set(re.findall(r"^([A-Z][a-z ]+):$\n(?= {4}\S)", doc, re.M))


@pytest.mark.parametrize("name", METHODS)
def test_methods(name):
    assert {"Formula", "Cost", "Fails when", "Faithful"} <= sections(method_class(name))
    doc = inspect.getdoc(method_class(name))
    assert re.search(r"^Fails when:\n( {4}- .*\n(?: {6}.*\n)*)+", doc, re.M), "it is a list"


@pytest.mark.parametrize("name", OPERATORS)
def test_operators(name):
    assert {"Formula", "Cost", "Backward", "Example"} <= sections(getattr(ops, name))
