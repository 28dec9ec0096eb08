"""Figures are drawn without a display, and appear whole or not at all."""

from __future__ import annotations

import subprocess
import sys

import pytest
from PIL import Image

from geollava.common.plots import new_figure, require_matplotlib, save_figure


def test_a_figure_becomes_a_picture(tmp_path):
    figure = new_figure(3, 2)
    left, _ = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1])
    save_figure(tmp_path / "a.png", figure)
    assert Image.open(tmp_path / "a.png").size == (3 * 130, 2 * 130)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert not left.spines["top"].get_visible()


def test_matplotlib_comes_late():
    script = "import sys; import geollava.common.plots; assert 'matplotlib' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_a_missing_matplotlib_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'tokenprune-vlm\[evaluate\]'"):
        require_matplotlib()
