"""How much of scenes is background."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image

from geollava.evaluate.models.background import background_prototypes, similarity
from geollava.evaluate.studies.background_share import measure, windows_of
from geollava.imagery import as_scene


@torch.no_grad()
def patches_alone(model):
    """The model with a tower whose tokens know nothing of their place and of each other."""
    model = copy.deepcopy(model)
    encoder = model.model.vision_tower.encoder
    encoder.embeddings.position_embedding.weight.zero_()
    for layer in encoder.encoder.layers:
        for linear in (layer.self_attn.out_proj, layer.mlp.fc2):
            linear.weight.zero_()
            linear.bias.zero_()
    return model


def test_windows_lie_within_the_image(default_pair):
    # 672 x 300 pixels fill the width of a canvas of two crops; 18 rows beyond it are black.
    model, processor = default_pair
    model = patches_alone(model)
    windows = windows_of(model, processor, as_scene(Image.new("RGB", (672, 300), (90, 120, 60))))
    width = model.config.vision_config.hidden_size
    assert windows.shape == (4 * 12, width)
    assert similarity(windows, background_prototypes(windows)).min() > 0.999


def test_background_share(run, default_pair, tmp_path):
    folder = tmp_path / "scenes"
    folder.mkdir()
    pixels = np.full((672, 672, 3), (90, 120, 60), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "even.png")
    pixels[:, 336:] = np.random.default_rng(0).integers(0, 256, (672, 336, 3))
    Image.fromarray(pixels).save(folder / "half.png")
    code, _, err = run("evaluate", "background", folder, "--out", tmp_path / "out")
    assert code == 0, err
    results = json.loads((tmp_path / "out" / "background.json").read_text())
    even, half = (row["share"] for row in results["scenes"])
    assert even == 1
    assert results["share"] == pytest.approx((1 + half) / 2)
    assert results["curve"] == sorted(results["curve"], reverse=True)
    assert (results["largest"], results["scenes"][0]["windows"]) == (1, 12 * 12)
    assert Image.open(tmp_path / "out" / "background.png").width > 500
    err = run("evaluate", "background", folder, "--out", tmp_path, "--threshold", 2)[2]
    assert "--threshold must be a cosine between 0 and 1, got 2.0" in err
    with pytest.raises(ValueError, match="between 0 and 1"):
        measure(*default_pair, [], 1.0)
