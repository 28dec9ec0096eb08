"""What vLLM answers is what transformers answers with `tokenprune.apply`."""

from __future__ import annotations

import pytest

from .checkpoints import CHECKPOINTS
from .engine import applied, differences, given, positions_of, prompts, served
from .forks import in_fork

METHODS = ("divprune", "fastervlm", "spatial_pool")  # features, attention of the tower, merging
QUARTER = {"keep_ratio": 0.25}


@pytest.fixture(scope="module")
def expected(checkpoint):
    """The answers of a host with each of the methods."""
    found = {}

    def of_all(name, folder):
        options = {**QUARTER, "positions": positions_of(name)}
        return {method: applied(folder, prompts(name), method, **options) for method in METHODS}

    def answers(name):
        if name not in found:
            found[name] = in_fork(of_all, name, checkpoint(name))
        return found[name]

    return answers


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_equals_apply(checkpoint, expected, name, method):
    replies = in_fork(served, checkpoint(name), prompts(name), **given(method, **QUARTER))
    assert differences(replies, expected(name)[method]) == []
