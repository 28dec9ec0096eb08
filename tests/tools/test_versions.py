"""The version matrix lists what the project promises, and names what a newer release broke."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import versions  # noqa: E402


@pytest.mark.parametrize("package", ["transformers", "triton"])
def test_the_promised_range_begins_where_the_tested_ones_do(package):
    promised = re.search(rf'"{package}>=([\d.]+)', (ROOT / "pyproject.toml").read_text())
    constraints = (ROOT / "constraints.txt").read_text()
    pinned = re.findall(rf"^{package}==([\d.]+)", constraints, re.MULTILINE)
    tested = list(versions.TESTED[package])
    assert tested == sorted(tested, key=lambda one: tuple(map(int, one.split("."))))
    assert tested[0].startswith(promised.group(1))
    assert pinned
    assert set(pinned) <= set(tested)


def test_every_test_of_the_core_is_there():
    for path in (path for paths in versions.TESTS.values() for path in paths):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (
            "E   UnknownTransformersError: transformers 6.0.0 is not as tokenprune assumes: "
            "LlavaModel.forward must take its cache as cache or past_key_values, got kv\n1 failed",
            "LlavaModel.forward must take its cache as cache or past_key_values, got kv",
        ),
        (
            "FAILED tests/a.py::test_b - ValueError: no\nFAILED tests/a.py::test_c\n2 failed",
            "tests/a.py::test_b: ValueError: no, and 1 more",
        ),
        ("ERROR installing - exit 1", "installing: exit 1"),
        ("", "the tests did not start"),
    ],
)
def test_what_a_newer_release_broke_is_said_in_a_line(output, expected, monkeypatch, capsys):
    monkeypatch.setattr(versions, "newest", lambda package: "99.0.0")
    monkeypatch.setattr(versions, "try_release", lambda *given: (False, output))
    versions.try_newer("transformers")
    assert capsys.readouterr().out == f"NEWER RELEASE BROKEN: transformers 99.0.0: {expected}\n"


def test_a_newer_release_that_works_or_is_none_is_no_news(monkeypatch, capsys):
    last = list(versions.TESTED["transformers"])[-1]
    for found, said in ((last, "it is tested"), (None, "not reached"), ("5.17.2", "it is tested")):
        monkeypatch.setattr(versions, "newest", lambda package, found=found: found)
        versions.try_newer("transformers")
        assert said in capsys.readouterr().out
    monkeypatch.setattr(versions, "newest", lambda package: "5.100.0")
    monkeypatch.setattr(versions, "try_release", lambda *given: (True, ""))
    versions.try_newer("transformers")
    assert capsys.readouterr().out == ""


def test_a_tested_release_that_fails_ends_the_run(monkeypatch, capsys):
    monkeypatch.setattr(versions, "try_release", lambda package, version, needs: (False, "why"))
    monkeypatch.setattr(sys, "argv", ["versions.py", "transformers", "--ends"])
    ends = list(versions.TESTED["transformers"])
    with pytest.raises(SystemExit, match=f"tests fail on {ends[0]}, {ends[-1]}"):
        versions.main()
    assert "why" in capsys.readouterr().out
