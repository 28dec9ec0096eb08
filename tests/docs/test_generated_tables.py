"""What pages list of the code is what the code has, and errors that pages quote are its errors."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

import tokenprune
from tokenprune.hosts.registry import known_adapters

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "docs" / "_extensions"))

import hosts  # noqa: E402
import packaging_tables  # noqa: E402
from tests.tokenprune.hosts import NOT_OF_IMAGES, OF_ONE_MODEL  # noqa: E402

SOURCES = [*(ROOT / "tokenprune").rglob("*.py"), *(ROOT / "geollava").rglob("*.py")]


@pytest.mark.slow
def test_hosts_are_listed_with_what_they_take():
    listed = {kind: family for family in hosts.families() for kind in family.model_types}
    own = {
        kind
        for kind, adapter in known_adapters().items()
        if adapter.__module__.partition(".")[0] in hosts.OWN
    }
    assert set(listed) == own
    assert listed["qwen2_vl"].positions == "several axes"
    assert listed["llava"].attention == "the class token (clip)"
    assert listed["paligemma"].attention == "all tokens (siglip)"
    assert listed["llava"].offers.startswith("`attention`, `cls`, `cls_logits`, `hidden_states`")
    assert "`cls`" not in listed["llava_next"].offers
    assert listed["internvl"].budget.startswith("a crop")
    known = set(tokenprune.list_methods())
    for family in hosts.families():
        assert set(family.refused) <= known
    assert "reduction_method 'none'" in listed["geollava"].refused["downsample"]
    assert set(listed["llava"].refused) == {*OF_ONE_MODEL, *NOT_OF_IMAGES}
    assert not {"evs", "vidcom2"} & set(listed["qwen2_vl"].refused)
    table = hosts.hosts_table()
    assert all(f"`{kind}`" in table for kind in own)
    assert "`background_anchored` | all |" in hosts.refused_table()


def test_every_type_of_transformers_is_listed():
    table = hosts.listed_table()
    for host in tokenprune.list_hosts():
        offers = ", ".join(f"`{name}`" for name in host.offers) or "-"
        shown = (f"`{host.adapter}`", host.positions, offers)
        cells = shown if host.supported else (host.reason,)
        assert f"| {' | '.join((f'`{host.model_type}`', *cells))} |" in table


def test_alternatives_say_which_methods_are_here():
    page = (ROOT / "docs" / "alternatives.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+)(?: \(trained\))? \| [\d.]+ \| [\d.]+ \| (yes|no) \|$", page, re.M)
    assert len(rows) == 9
    for name, here in rows:
        assert (name.lower() in tokenprune.list_methods()) == (here == "yes"), name


def test_refusals_are_read_from_the_code():
    table = hosts.refusals_table("tokenprune/hosts")
    assert "| tokens of videos are not reduced in …; strict=False lets them pass" in table
    assert "| a static cache has its length fixed" in table
    assert "Pixtral" in hosts.refusals_table("tokenprune/hosts/families")


def test_an_adapter_without_a_budget_is_named():
    class Silent(tokenprune.Adapter):
        """Says nothing."""

    with pytest.raises(ValueError, match="one paragraph of Silent must begin with"):
        hosts.family_of(Silent)


def test_every_extra_is_explained():
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    for extra in packaging_tables.project()["optional-dependencies"]:
        assert f"| `{extra}` |" in packaging_tables.extras_table()
        assert f"`{extra}`" in page, f"install.md does not say what {extra} is for"


def test_versions_are_those_of_the_matrix():
    table = packaging_tables.versions_table()
    row = next(line for line in table.splitlines() if line.startswith("| transformers |"))
    assert packaging_tables.range_of("transformers") in row
    assert packaging_tables.pinned()["transformers"] in row


def test_moved_names_are_listed():
    assert "| `geollava.cli` | `geollava.commands.main` | works, warns |" in (
        packaging_tables.moved_table()
    )


def test_errors_that_pages_quote_are_the_codes():
    texts = [text for path in SOURCES for text in strings_of(path)]
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^```text\n(.*?)\n```$", page, re.M | re.S)
    assert len(quoted) > 12
    for error in quoted:
        assert any(says(text, error) for text in texts), f"no code raises: {error}"


def strings_of(path: Path) -> list[str]:
    """Every string and formatted string of a file, values as "…"."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    kinds = (ast.Constant, ast.JoinedStr, ast.BinOp)
    return [hosts.spelled(node) for node in nodes if isinstance(node, kinds)]


def says(text: str, error: str) -> bool:
    """Whether the words of `error` around each "…" stand in `text`, in order."""
    at = 0
    for part in error.split("…"):
        at = text.find(part.strip(), at)
        if at < 0:
            return False
        at += len(part.strip())
    return True
