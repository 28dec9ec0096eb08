"""The folders are what CONTRIBUTING says they are."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tokenprune import ops

OPS = Path(ops.__file__).parent
FOLDERS = sorted(path.parent.name for path in OPS.glob("*/op.py"))
FAMILIES = {  # folders of several operators, which share a reference and a kernel
    "greedy_select": {"coverage_select", "dpp_select", "max_min_select", "mmr_select"},
}


def imported(path):
    """The modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def test_every_operator_is_a_folder():
    public = {name for name in ops.__all__ if name[0].islower()}
    assert public == {name for folder in FOLDERS for name in FAMILIES.get(folder, {folder})}
    for folder in FOLDERS:
        for name in FAMILIES.get(folder, {folder}):
            assert getattr(ops, name).__module__ == f"tokenprune.ops.{folder}.op"
    assert {path.name for path in OPS.iterdir() if path.is_dir()} - {"__pycache__"} == (
        {*FOLDERS, "common"}
    )
    assert {path.name for path in OPS.glob("*.py")} == {"__init__.py"}


@pytest.mark.parametrize("name", FOLDERS)
def test_reference_and_kernel_never_import_each_other(name):
    reference, kernel = OPS / name / "reference.py", OPS / name / "kernel.py"
    assert not {module for module in imported(reference) if "kernel" in module}
    assert not {module for module in imported(reference) if module.split(".")[0] == "triton"}
    if kernel.exists():
        assert not {module for module in imported(kernel) if "reference" in module}
