"""PyPI has another package `tokenprune`, imported by the same name: it must not go unnoticed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tokenprune

OTHER = '__version__ = "0.1.0"\ndef distill(text):\n    return text\n'


def install_other(folder: Path, *, files: bool) -> Path:
    """The other distribution as pip leaves it: its metadata and, where they win, its files."""
    info = folder / "tokenprune-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tokenprune\nVersion: 0.1.0\n")
    if files:
        (folder / "tokenprune").mkdir()
        (folder / "tokenprune" / "__init__.py").write_text(OTHER)
    return folder


def run(script: str, *folders: Path) -> subprocess.CompletedProcess[str]:
    paths = f"import sys; sys.path[:0] = {[str(folder) for folder in folders]}\n"
    return subprocess.run([sys.executable, "-c", paths + script], capture_output=True, text=True)


@pytest.mark.parametrize("script", ["import tokenprune", "from tokenprune import ops, apply"])
def test_where_our_files_win(script, tmp_path):
    done = run(script, install_other(tmp_path, files=False))
    assert done.returncode == 1
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("ImportError: PyPI's unrelated package tokenprune 0.1.0 is installed")
    assert "pip uninstall tokenprune tokenprune-vlm; pip install tokenprune-vlm" in message


def test_where_the_other_files_win(tmp_path):
    """The other's __init__ runs then, and whatever of ours is left beside it says so."""
    folder = install_other(tmp_path, files=True)
    shutil.copy(Path(tokenprune.__file__).with_name("cli.py"), folder / "tokenprune")
    shutil.copy(Path(tokenprune.__file__).with_name("namesake.py"), folder / "tokenprune")
    for script in ("import geollava", "from tokenprune.cli import main"):
        done = run(script, folder)
        assert done.returncode == 1
        message = done.stderr.strip().splitlines()[-1]
        assert message.startswith("ImportError: PyPI's unrelated package tokenprune"), done.stderr


def test_alone_it_is_silent():
    done = run("import tokenprune")
    assert (done.returncode, done.stderr) == (0, "")
