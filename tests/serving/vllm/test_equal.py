"""What vLLM answers is what transformers answers with `tokenprune.apply`."""

from __future__ import annotations

import pytest

from tokenprune import get_method

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


KEYS = {"compared": "keys"}


MORE = [
    ("llava", "tome", KEYS),
    ("qwen2_5_vl", "visionzip", KEYS),  # of a tower that sorts tokens by window
    ("internvl", "visionzip", KEYS),  # from a projection of their own
    ("llava_next", "vispruner", {}),  # hidden states, of crops that a processor pads
    ("qwen2_5_vl", "scope", {}),  # hidden states
]


@pytest.mark.parametrize(("name", "method", "options"), MORE)
def test_equals_apply_with_more_of_the_tower(checkpoint, name, method, options):
    folder, asked = checkpoint(name), prompts(name)
    known = {**QUARTER, "positions": positions_of(name)}
    expected = in_fork(applied, folder, asked, get_method(method, **options), **known)
    replies = in_fork(served, folder, asked, **given(method, options=options, **QUARTER))
    assert differences(replies, expected) == []
