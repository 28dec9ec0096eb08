"""What vLLM answers is what transformers answers with `tokenprune.apply`."""

from __future__ import annotations

import pytest

from .checkpoints import CHECKPOINTS
from .engine import applied, differences, given, prompts, served
from .forks import in_fork

METHODS = ("divprune", "fastervlm", "spatial_pool")  # features, attention of the tower, merging


def positions_of(name):
    return "original" if name.startswith("qwen") else "compact"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_equals_apply(checkpoint, name, method):
    folder, asked = checkpoint(name), prompts(name)
    options = {"keep_ratio": 0.25, "positions": positions_of(name)}
    expected = in_fork(applied, folder, asked, method, **options)
    replies = in_fork(served, folder, asked, **given(method, keep_ratio=0.25))
    assert differences(replies, expected) == []
