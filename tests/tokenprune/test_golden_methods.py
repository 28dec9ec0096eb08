"""What an option of a method that follows its official code changes in what is said of it."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open

from tokenprune import VisionTokens, get_method

OFFICIAL_PRUMERGE = {"compared": "keys", "neighbors": 32, "keep_rest": True}


def recorded(golden, name):
    with safe_open(golden / "methods" / f"{name}.safetensors", framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["options"])


def test_departures_that_options_lift():
    assert get_method("tome", compared="keys").approximates == (
        "after the tower, not inside its layers"
    )
    with pytest.raises(ValueError, match=r"ToMe needs VisionTokens\.keys, got"):
        get_method("tome", compared="keys").reduce(VisionTokens(torch.zeros(1, 4, 8), (2, 2)), 2)
    with pytest.raises(ValueError, match="compared must be 'features' or 'keys', got 'values'"):
        get_method("tome", compared="values")


def test_options_that_follow_the_official_code_are_called_faithful():
    pairs = [
        ("visionzip", {"compared": "keys", "merging": "sum", "keep_cls": True}),
        ("tome", {"compared": "keys"}),
        ("prumerge", OFFICIAL_PRUMERGE),
        ("prumergeplus", OFFICIAL_PRUMERGE | {"adaptive": True}),
        ("pyramiddrop", {"official": True}),
        ("flashvid", {"ratio": 0.2}),
    ]
    for name, options in pairs:
        assert get_method(name, **options).faithful.startswith("faithful to "), name
    for name, options in pairs[:4]:
        fewer = dict([*options.items()][:-1])
        assert not fewer or get_method(name, **fewer).faithful == "variant", name
