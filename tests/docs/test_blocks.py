"""The blocks of a page are found, and run as a reader would run them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tools import doc_blocks

ROOT = Path(__file__).resolve().parents[2]


def test_blocks_are_found_with_their_lines():
    text = (
        "# Page\n\n```python\na = 1\n```\n\n- item\n\n  ```bash\n  ls\n  ```\n\n"
        "<!-- not run: it needs a GPU -->\n```python\nb = 2\n```\n\n```text\nout\n```\n"
        "```{figure} a.png\n```\n"
    )
    assert doc_blocks.blocks_of(text) == [
        doc_blocks.Block("python", "a = 1\n", 3, None),
        doc_blocks.Block("bash", "ls\n", 9, None),
        doc_blocks.Block("python", "b = 2\n", 14, "it needs a GPU"),
    ]


@pytest.mark.parametrize("language", ["", "sh", "console", "py"])
def test_another_language_is_refused(language):
    with pytest.raises(ValueError, match=r"line 2: a block is one of python, bash, .*, got "):
        doc_blocks.blocks_of(f"\n```{language}\nls\n```\n")


def test_what_a_page_may_ask_for():
    assert doc_blocks.asked_of("<!-- blocks: scene llava -->") == ["scene", "llava"]
    with pytest.raises(ValueError, match="blocks ask for moon; there are"):
        doc_blocks.asked_of("<!-- blocks: scene moon -->")


@pytest.mark.parametrize("path", doc_blocks.pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_blocks_of_every_page_can_be_read(path):
    text = path.read_text(encoding="utf-8")
    doc_blocks.blocks_of(text)
    doc_blocks.asked_of(text)


@pytest.mark.slow
def test_a_page_runs_in_order_and_a_failure_names_its_line(monkeypatch, tmp_path):
    good, bad = ROOT / "docs" / "_build" / "good.md", ROOT / "docs" / "_build" / "bad.md"
    good.parent.mkdir(exist_ok=True)
    good.write_text(
        "```python\na = 1\n```\n```bash\necho 2 > b\n```\n"
        "```python\nassert a + int(open('b').read()) == 3\n```\n"
    )
    bad.write_text("# Page\n\n```python\nfine = 1\nbroken = 1 / 0\n```\n")
    try:
        command = [sys.executable, "tools/doc_blocks.py"]
        done = subprocess.run([*command, good, bad], cwd=ROOT, capture_output=True, text=True)
    finally:
        good.unlink()
        bad.unlink()
    assert done.returncode == 1
    assert "ok" in next(line for line in done.stdout.splitlines() if "good.md" in line)
    assert "docs/_build/bad.md:3:" in done.stdout
    assert "line 5" in done.stdout
    assert "ZeroDivisionError" in done.stdout
