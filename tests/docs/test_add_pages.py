"""The three tutorials, followed word for word in an empty folder.

A block with a caption is written to that file, every other block runs, in order. Nothing is
installed: where a page says `pip install -e .`, the entry points of its pyproject.toml are put
where that would put them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "tokenprune"
BLOCK = re.compile(
    r"^```\{code-block\} (?P<language>\w+)\n(?::caption: (?P<file>\S+)\n)?\n(?P<code>.*?)^```$",
    re.M | re.S,
)
INSTALL = "pip install -e .\n"


@dataclass
class Folder:
    """What a reader has who follows a page."""

    path: Path
    written: list[str]
    outputs: list[str]

    def follow(self, page: str) -> None:
        text = (PAGES / page).read_text(encoding="utf-8")
        assert not re.search(r"^```(python|bash)", text, re.M), "a block that is no directive"
        for block in BLOCK.finditer(text):
            if block["file"]:
                self.write(block["file"], block["code"])
            elif block["code"] == INSTALL:
                self.install()
            elif block["language"] == "python":
                self.run(sys.executable, "-W", "error::UserWarning", "-c", block["code"])
            else:
                assert block["language"] == "bash"
                self.run("bash", "-euo", "pipefail", "-c", block["code"])

    def write(self, name: str, code: str) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code, encoding="utf-8")
        self.written.append(name)

    def install(self) -> None:
        """What pip would leave for a package whose code lies on the path."""
        project = tomllib.loads((self.path / "pyproject.toml").read_text("utf-8"))["project"]
        info = self.path / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        )
        lines = []
        for group, entries in project["entry-points"].items():
            lines += [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")

    def run(self, *command: str) -> None:
        scripts = str(Path(sys.executable).parent)
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join((str(self.path), str(ROOT))),
            "PATH": os.pathsep.join((scripts, os.environ["PATH"])),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        done = subprocess.run(
            command, cwd=self.path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command[-1]}\n{done.stdout}\n{done.stderr}"
        self.outputs.append(done.stdout)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path, [], [])


@pytest.mark.slow
def test_add_a_method(folder):
    folder.follow("add-a-method.md")
    assert folder.written == ["my_package/largest_norm.py", "pyproject.toml"]
    (line,) = (row for row in folder.outputs[-1].splitlines() if row.startswith("largest_norm "))
    assert "keeps the tokens whose features are longest" in line
    folder.run(  # the promise is one that can be broken
        sys.executable,
        "-c",
        "import tokenprune.testing, my_package.largest_norm as made\n"
        "class Shorter(made.LargestNorm):\n"
        "    def _reduce(self, tokens, num_keep):\n"
        "        return super()._reduce(tokens, max(1, num_keep - 1))\n"
        "try:\n"
        "    tokenprune.testing.check_method(Shorter)\n"
        "except AssertionError as error:\n"
        "    assert 'exact count' in str(error), error\n"
        "else:\n"
        "    raise SystemExit('it passed')\n",
    )


@pytest.mark.slow
def test_add_a_host(folder):
    folder.follow("add-a-host.md")
    assert folder.written == ["my_package/postcard.py", "my_package/adapter.py", "pyproject.toml"]
    report = folder.outputs[-1]
    assert "PostcardForConditionalGeneration (postcard)" in report
    assert report.endswith("verified\n")
    assert "NOT" not in report
    folder.run(  # a wrong layout does not pass
        sys.executable,
        "-c",
        "import tokenprune, my_package.adapter as made\n"
        "from my_package.postcard import tiny_postcard\n"
        "made.Postcard.layout = lambda self, size: tokenprune.ImageLayout.one_grid(8, 8)\n"
        "assert not tokenprune.verify(*tiny_postcard(), keep_ratio=0.25).ok\n",
    )


@pytest.mark.slow
def test_add_a_kernel(folder):
    pytest.importorskip("triton")
    folder.follow("add-a-kernel.md")
    assert folder.written == [
        *(f"token_energy/{name}.py" for name in ("reference", "kernel", "op", "__init__")),
        "test_token_energy.py",
    ]
    assert re.search(r"^15 passed", folder.outputs[0], re.M), folder.outputs[0]
    folder.run(  # as the page says: without Triton
        sys.executable, "-c", "import sys, token_energy; assert 'triton' not in sys.modules"
    )
