"""A scorer's weights: from safetensors alone, whichever names stand before theirs."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from tokenprune import VisionTokens
from tokenprune.methods.visionselector import VisionSelector

NAMES = ("q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias")


@pytest.fixture
def scorer():
    generator = torch.Generator().manual_seed(0)
    shapes = ((4, 8), (4,), (4, 8), (4,))
    return {
        name: torch.randn(shape, generator=generator)
        for name, shape in zip(NAMES, shapes, strict=True)
    }


def is_that(method, scorer):
    loaded = (method.q_weight, method.q_bias, method.k_weight, method.k_bias)
    return all(torch.equal(one, scorer[name]) for one, name in zip(loaded, NAMES, strict=True))


def test_a_file_and_the_shards_of_a_checkpoint(scorer, tmp_path):
    save_file(scorer, tmp_path / "scorer.safetensors")
    assert is_that(VisionSelector.load(tmp_path / "scorer.safetensors"), scorer)
    shards = tmp_path / "checkpoint"
    shards.mkdir()
    full = {f"visual.importance_scorer.{name}": value for name, value in scorer.items()}
    others = {"model.layers.0.self_attn.q_proj.weight": torch.zeros(8, 8)}
    save_file(dict(list(full.items())[:1]), shards / "model-00001-of-00002.safetensors")
    save_file(dict(list(full.items())[1:]) | others, shards / "model-00002-of-00002.safetensors")
    method = VisionSelector.load(shards, strict=False)
    assert is_that(method, scorer)
    assert not method.strict


def test_nothing_else_is_opened(scorer, tmp_path):
    torch.save(scorer, tmp_path / "scorer.bin")
    for path in (tmp_path / "scorer.bin", tmp_path):
        with pytest.raises(ValueError, match=r"must be a \.safetensors file or a folder"):
            VisionSelector.load(path)
    del scorer["k_proj.bias"]
    save_file(scorer, tmp_path / "scorer.safetensors")
    with pytest.raises(ValueError, match=r"lacks \['k_bias'\]"):
        VisionSelector.load(tmp_path / "scorer.safetensors")


def test_weights_that_do_not_fit(scorer):
    weights = {name.replace("_proj.", "_"): value for name, value in scorer.items()}
    with pytest.raises(ValueError, match=r"must be \[H, D\], got \(4, 8\) and \(8, 4\)"):
        VisionSelector(**weights | {"k_weight": weights["k_weight"].T})
    with pytest.raises(ValueError, match=r"q_bias must be \[H\], got \(8,\)"):
        VisionSelector(**weights | {"q_bias": torch.zeros(8)})
    with pytest.raises(ValueError, match="for tokens of width 8, got 6"):
        VisionSelector(**weights).reduce(VisionTokens(torch.zeros(1, 4, 6), (2, 2)), 2)
