"""The tool that counts a package's files, arrows and circles."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

import structure  # noqa: E402

FILES = {
    "__init__.py": "from house.kitchen import cook\n",
    "py.typed": "",
    "door.py": "import house.kitchen.stove\nimport os\n",
    "kitchen/__init__.py": "from .stove import fire\nfrom . import cook\n",
    "kitchen/cook.py": "def cook():\n    from house.garden import herbs\n",
    "kitchen/stove.py": "fire = 1\n",
    "garden/herbs.py": (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..kitchen import cook\n"
    ),
    "garden/picture.png": None,
}


@pytest.fixture
def house(tmp_path):
    for path, text in FILES.items():
        file = tmp_path / "house" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"\xff\x00" if text is None else text.encode())
    return tmp_path / "house"


def run(*arguments):
    command = [sys.executable, str(TOOLS / "structure.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_arrows_in_functions_and_for_types_count(house):
    package = structure.Package.from_folder(house)
    assert package.entries == ["door.py", "garden", "kitchen"]
    assert package.graph == {
        "house": {"house.kitchen.cook"},
        "house.door": {"house.kitchen.stove"},
        "house.kitchen": {"house.kitchen.stove", "house.kitchen.cook"},
        "house.kitchen.cook": {"house.garden.herbs"},
        "house.kitchen.stove": set(),
        "house.garden.herbs": {"house.kitchen.cook"},
    }
    assert structure.circles(package.graph) == [["house.garden.herbs", "house.kitchen.cook"]]
    assert package.rooms == {
        "house": {"kitchen"},
        "door": {"kitchen"},
        "kitchen": {"garden"},
        "garden": {"kitchen"},
    }
    assert structure.circles(package.rooms) == [["garden", "kitchen"]]


def test_circles_are_told_apart():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a", "e"}, "e": {"d"}, "f": {"a", "d"}}
    assert structure.circles(graph) == [["a", "b", "c"], ["d", "e"]]
    assert structure.circles({"a": {"b"}, "b": set()}) == []


def test_long_files_and_classes(house):
    (house / "door.py").write_text("class Door:\n" + "    x = 1\n" * 250)
    (house / "garden" / "lawn.py").write_text("y = 1\n" * 401)
    package = structure.Package.from_folder(house)
    assert package.long_classes() == ["house.door.Door 251"]
    assert package.long_files() == ["garden/lawn.py 401"]
    (house / "door.py").write_text("class Door:\n" + "    x = 1\n" * 249)
    (house / "garden" / "lawn.py").write_text("y = 1\n" * 400)
    package = structure.Package.from_folder(house)
    assert package.long_classes() == package.long_files() == []


def test_a_commit_is_shown_beside(house):
    def git(*arguments):
        names = ("-c", "user.name=n", "-c", "user.email=e@example.com")
        subprocess.run(["git", "-C", house.parent, *names, *arguments], check=True)

    git("init", "-q")
    git("add", "house")
    git("commit", "-q", "-m", "first")
    (house / "kitchen" / "cook.py").write_text("")
    (house / "attic.py").write_text("")
    assert structure.Package.from_commit(house, "HEAD").files == {
        path: text or "" for path, text in FILES.items()
    }
    done = run(house, "--against", "HEAD")
    assert done.returncode == 0, done.stderr
    rows = [line.split("  ") for line in done.stdout.splitlines()]
    table = {row[0]: [cell.strip() for cell in row[1:] if cell] for row in rows}
    assert table["files"] == ["6", "7"]
    assert table["entries at the top level"] == ["3", "4"]
    assert table["circles of files"] == ["1", "0"]
    assert "house at HEAD: circle: house.garden.herbs - house.kitchen.cook" in done.stdout
    missing = run(house, "--against", "nowhere")
    assert missing.returncode == 2
    assert missing.stderr.startswith("error: house at nowhere: ")


def test_what_is_no_folder_is_refused(tmp_path):
    done = run(tmp_path / "nothing")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: a package's folder was expected, got ")
