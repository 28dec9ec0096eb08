"""Numbers in the README and in the documentation come from committed rows or have a source."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
EXTENSIONS = ROOT / "docs" / "_extensions"
sys.path.insert(0, str(EXTENSIONS))

import figures  # noqa: E402

figures.load()
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("[!_]*/*.md")),
    *(ROOT / "docs").glob("*.md"),
]
FACTS = yaml.safe_load((EXTENSIONS / "facts.yaml").read_text(encoding="utf-8"))

UNITS = (
    "%|×(?! *[0-9])|times|ms|s|seconds?|minutes?|hours?|kB|MB|GB|KiB|MiB|GiB|TiB|points|"
    "megapixels?|gigapixels?|megabytes?|gigabytes?"
)
QUANTITY = re.compile(rf"(?<![\w.,-])(\d[\d,]*(?:\.\d+)?) ?({UNITS})(?![\w-])")
NOT_PROSE = re.compile(
    r"^ *```.*?^ *```$|<!-- figure: \w+ -->.*?<!-- -->|<!--.*?-->|`[^`]*`|\$[^$]*\$|\]\([^)]*\)",
    re.M | re.S,
)


def quantities(text: str) -> list[str]:
    """Numbers with a unit in prose and in tables: not in code, formulas or marked figures."""
    found = QUANTITY.finditer(NOT_PROSE.sub(" ", text))
    return [" ".join(match.groups()) for match in found]


def test_what_a_quantity_is():
    text = """It takes 12.5 s, 3 % more, 2.9 × as fast on 8,192 × 8,192 pixels, 40 MiB; 7 layers.
    `--limit 3 s`, $5 %$, {figure}`x`, <!-- figure: x -->4 ms<!-- --> and [a](b-5%20s.md).
```text
9 ms
```
"""
    assert quantities(text) == ["12.5 s", "3 %", "2.9 ×", "40 MiB"]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_quantity_has_a_source(path):
    known = {fact["text"] for fact in FACTS}
    unknown = sorted({q for q in quantities(path.read_text(encoding="utf-8")) if q not in known})
    assert not unknown, (
        f"{unknown} in {path.name}: write {{figure}}`name` for what was measured, or list it "
        f"with its source in docs/_extensions/facts.yaml"
    )


def test_every_fact_has_a_source_and_is_used():
    used = {q for path in PAGES for q in quantities(path.read_text(encoding="utf-8"))}
    for fact in FACTS:
        assert set(fact) == {"text", "source"}
        assert fact["source"]
        assert fact["text"] in used, f"no page says {fact['text']}"


def test_the_readme_says_what_the_rows_say():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert figures.MARKED.search(text)
    assert figures.filled(text) == text, "run python docs/_extensions/figures.py"


@pytest.mark.parametrize("name", sorted(figures.FIGURES | figures.TABLES))
def test_figures_are_computed(name):
    assert (figures.FIGURES | figures.TABLES)[name]()


def test_an_unknown_figure_and_an_unclear_row_are_refused():
    with pytest.raises(ValueError, match="no figure is called 'speed'; there are"):
        figures.text_of(figures.FIGURES, "speed")
    with pytest.raises(ValueError, match=r"must have one row with .*, it has 0"):
        figures.row("cpu-2-threads-x86_64", op="none")
