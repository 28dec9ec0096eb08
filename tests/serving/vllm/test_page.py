"""The page about serving says what the tests here show."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .checkpoints import CHECKPOINTS
from .engine import positions_of
from .forks import in_fork
from .test_equal import METHODS, MORE

PAGE = Path(__file__).resolve().parents[3] / "docs" / "tokenprune" / "serving.md"
ROW = re.compile(r"^\| (\w+ForConditionalGeneration) \| (\w+) \| (.*) \| (.*) \|$", re.MULTILINE)


@pytest.fixture(scope="module")
def text():
    return PAGE.read_text(encoding="utf-8")


def served_by(name):
    """(architecture, what a budget counts for, the methods that it takes) of a tiny model."""
    import tokenprune
    from tokenprune.serving.vllm.hosts import adapter_for
    from tokenprune.serving.vllm.refusals import check_served

    model, _ = CHECKPOINTS[name]()
    architecture = type(model).__name__
    model.config.architectures = [architecture]
    adapter, taken = adapter_for(model.config), []
    for method in tokenprune.list_methods():
        try:
            check_served(tokenprune.get_method(method), adapter)
        except (NotImplementedError, ValueError):
            continue
        taken.append(method)
    return architecture, adapter.unit, taken


@pytest.fixture(scope="module")
def served():
    return {name: in_fork(served_by, name) for name in CHECKPOINTS}


def test_hosts(text, served):
    from tokenprune.serving.vllm.hosts import HOSTS

    rows = {row[0]: row[1:] for row in ROW.findall(text)}
    assert set(rows) == set(HOSTS) == {architecture for architecture, _, _ in served.values()}
    for name, (architecture, unit, _) in served.items():
        positions, counts_for, shown = rows[architecture]
        assert positions == positions_of(name)
        assert counts_for.endswith(f" {unit}")
        assert re.findall(r"`(\w+)`", shown) == [method for host, method, _ in MORE if host == name]
    assert f"shown with {', '.join(f'`{method}`' for method in METHODS)} and" in text


def test_methods(text, served):
    (named,) = re.findall(r"Every host takes (.*?), and\nmethods of your own", text, re.DOTALL)
    for _, _, taken in served.values():
        assert re.findall(r"`(\w+)`", named) == sorted(taken)
