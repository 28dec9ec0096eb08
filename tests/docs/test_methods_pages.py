"""Pages of methods and operators: from the code, whole, and true where they can be checked."""

from __future__ import annotations

import importlib
import re
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace

import pytest
from docutils.utils.math.latex2mathml import tex2mathml

from tokenprune import Method, list_methods, method_class, ops
from tokenprune.method import BUDGET
from tools import doc_blocks

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "docs" / "_extensions"))

import figures  # noqa: E402
import methods  # noqa: E402
import operators  # noqa: E402
from sections import Docstring, without_own_sections  # noqa: E402

SHIPPED = sorted(path.stem for path in (ROOT / "tokenprune" / "methods").glob("[!_]*.py"))
TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")
BLOCK = re.compile(r"^```.*?^```$", re.M | re.S)


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, str]:
    """Every page by "methods/NAME" or "operators/NAME"."""
    folder = tmp_path_factory.mktemp("docs")
    app = SimpleNamespace(srcdir=str(folder))
    methods.write_pages(app)
    operators.write_pages(app)
    found = (folder / "_generated").rglob("*.md")
    return {f"{path.parent.name}/{path.stem}": path.read_text("utf-8") for path in found}


def formulas(text: str) -> list[tuple[str, bool]]:
    """(LaTeX, whether it stands by itself) of a page."""
    prose = re.sub(r"`[^`]*`", "", BLOCK.sub("", text))
    blocks = re.findall(r"\$\$(.*?)\$\$", prose, re.S)
    inline = re.findall(r"\$([^$]+)\$", re.sub(r"\$\$.*?\$\$", "", prose, flags=re.S))
    return [(block, True) for block in blocks] + [(math, False) for math in inline]


def test_a_page_for_each(pages):
    assert {f"methods/{name}" for name in list_methods()} <= set(pages)
    assert {f"operators/{name}" for name in operators.names()} <= set(pages)
    assert set(operators.names()) == {name for name in ops.__all__ if name.islower()}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_page_of_a_method_is_whole(pages, name):
    text = pages[f"methods/{name}"]
    headings = re.findall(r"^## (.*)$", BLOCK.sub("", text), re.M)
    wanted = ["Formula", "Cost", "Fails when", "How faithful", "Options", "Example"]
    assert headings[: len(wanted)] == wanted
    for option in fields(method_class(name)):
        if option.name in BUDGET:  # which every method has
            continue
        row = next(line for line in text.splitlines() if line.startswith(f"| `{option.name}` |"))
        assert not row.endswith("| - |"), f"{option.name} is not explained"
    assert len(doc_blocks.blocks_of(text)) == 1
    assert formulas(text)


def test_formulas_can_be_drawn(pages):
    for name, text in pages.items():
        for formula, alone in formulas(text):
            try:
                tex2mathml(formula, as_block=alone)
            except Exception as error:  # the library has no class for it
                pytest.fail(f"{name}: {error} in {formula}")


def test_tests_that_pages_name_are_there(pages):
    named = {match for text in pages.values() for match in TEST.findall(text)}
    assert named
    for path, function in named:
        source = (ROOT / path).read_text(encoding="utf-8")
        assert not function or f"def {function}(" in source, f"{path} has no {function}"


def test_links_between_pages_hold(pages):
    for name, text in pages.items():
        for link in re.findall(r"\]\((\.\./operators/\w+|\w+)\.md\)", text):
            target = link.removeprefix("../") if "/" in link else f"{name.split('/')[0]}/{link}"
            assert target in pages, f"{name} links to {link}"


@pytest.mark.parametrize("name", [f"operators/{name}" for name in operators.names()])
def test_the_block_of_an_operator_runs(pages, name):
    for block in doc_blocks.blocks_of(pages[name]):
        exec(compile(block.code, name, "exec"), {})


@pytest.mark.parametrize("name", SHIPPED)
def test_the_block_of_a_method_runs(pages, name):
    text = pages[f"methods/{name}"]
    if doc_blocks.asked_of(text):
        pytest.skip("asks a scene: tools/doc_blocks.py runs it")
    for block in doc_blocks.blocks_of(text):
        exec(compile(block.code, name, "exec"), {})


def test_a_method_of_another_package_has_a_page_without_our_sections(tmp_path, monkeypatch):
    @dataclass(kw_only=True)
    class Other(Method):
        """Keeps what another package keeps."""

        first: int = 3

        def _reduce(self, tokens, num_keep):
            raise NotImplementedError

    monkeypatch.setattr(methods, "method_class", lambda name: Other)
    text = methods.page("other", picture=False)
    assert text.startswith("# `other`\n\nKeeps what another package keeps.\n")
    assert "| `first` | `3` | - |" in text
    assert "## Formula" not in text
    assert 'get_method("other")' in text


def test_docstrings_in_parts():
    def documented():
        r"""Does it.

        More words.

        Args:
            a, b: two things, in
                two lines.

        Formula:
            $x$ and

            - a list.

        Returns:
            Nothing.
        """

    doc = Docstring.of(documented)
    assert (doc.summary, doc.text) == ("Does it.", "More words.")
    assert doc.sections["Formula"] == "$x$ and\n\n- a list."
    assert doc.entries("Args") == dict.fromkeys("ab", "two things, in two lines.")
    lines = ["Does it.", "", "Formula:", "    $x$", "", "Returns:", "    Nothing."]
    assert without_own_sections(lines) == ["Does it.", "", "Returns:", "    Nothing."]


def measured(name: str, value: str) -> list[float]:
    """A value of the committed rows of a method, by ascending budget."""
    rows = [row for row in figures.rows("methods/cpu-1-threads-x86_64") if row["impl"] == name]
    return [row[value] for row in sorted(rows, key=lambda row: row["shape"][3])]


def test_what_pages_say_of_the_measured_rows():
    """Comparisons in words, in the sections "Fails when" and "Cost"."""

    def below(name, other, value):
        pairs = zip(measured(name, value), measured(other, value), strict=True)
        return all(mine < others for mine, others in pairs)

    assert below("dart", "random", "objects_kept")
    assert measured("downsample", "objects_seen")[:2] == [0, 0]
    assert measured("spatial_pool", "objects_seen")[0] == 0
    sparse = measured("sparsevlm", "objects_seen")
    assert sparse[-1] - sparse[0] < 0.1


def test_pictures_say_what_the_pages_say():
    """One white storage tank is dropped by divprune; uniform keeps one column of the crop."""
    sample = importlib.import_module("sample")
    roots, _ = sample.flags(sample.reduced("divprune"))
    dropped, kept = (slice(11, 14), slice(6, 9)), (slice(14, 17), slice(10, 13))
    assert not roots[dropped].any()
    assert roots[kept].any()
    roots, _ = sample.flags(sample.reduced("uniform"))
    assert roots.any(axis=0).sum() == 1
