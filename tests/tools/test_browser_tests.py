"""The tests of the web page: what their core names is there, and a machine without a browser hears
what it needs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import browser_tests  # noqa: E402


def test_the_core_names_a_test():
    assert f"def {browser_tests.CORE}(" in (ROOT / browser_tests.TESTS).read_text()


@pytest.mark.parametrize(("apt", "user"), [(None, 0), ("/usr/bin/apt-get", 1000)])
def test_a_machine_that_cannot_get_a_browser_is_told_so(apt, user, monkeypatch):
    monkeypatch.delenv("CHROMIUM", raising=False)
    monkeypatch.setattr("shutil.which", {"apt-get": apt}.get)
    monkeypatch.setattr("os.geteuid", lambda: user)
    with pytest.raises(SystemExit, match="the browser tests need Chromium: install"):
        browser_tests.need_chromium()


def test_root_on_debian_gets_it(monkeypatch):
    ran = []
    monkeypatch.delenv("CHROMIUM", raising=False)
    monkeypatch.setattr("shutil.which", {"apt-get": "/usr/bin/apt-get"}.get)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("subprocess.run", lambda command, **options: ran.append(command))
    browser_tests.need_chromium()
    assert [command[2] for command in ran] == ["update", "install"]
    assert "chromium" in ran[1]
    monkeypatch.setenv("CHROMIUM", "/opt/chromium")
    browser_tests.need_chromium()
    assert len(ran) == 2
