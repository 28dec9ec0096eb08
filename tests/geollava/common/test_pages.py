"""Pages escape every value, and miss none."""

from __future__ import annotations

import jinja2
import pytest

from geollava.common.pages import render_page


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with a template."""
    folder = tmp_path / "package_of_pages"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "a.html.jinja").write_text('<p title="{{ hint }}">{{ text }}</p>\n')
    monkeypatch.syspath_prepend(tmp_path)
    return folder.name


def test_values_are_escaped(package):
    page = render_page(package, "a.html.jinja", hint="\" onclick='x'", text="<script>&{{ text }}")
    assert page == ('<p title="&#34; onclick=&#39;x&#39;">&lt;script&gt;&amp;{{ text }}</p>\n')


def test_a_missing_value_is_named(package):
    with pytest.raises(jinja2.UndefinedError, match="'hint' is undefined"):
        render_page(package, "a.html.jinja", text="")
