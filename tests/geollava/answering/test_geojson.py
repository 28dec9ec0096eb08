"""Kept tokens on the map."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geollava import imagery
from geollava.answering import geojson, overlay
from geollava.answering.encoding import SceneTokens
from tests.geollava.imagery.test_rasters import NORTH_UP, UTM, rgb, write
from tokenprune import ReducedTokens

rasterio = pytest.importorskip("rasterio")


def kept_tokens(crops, grid_size, num_keep, seed=0):
    torch.manual_seed(seed)
    num_tokens = grid_size[0] * grid_size[1]
    keep = torch.stack([torch.randperm(num_tokens)[:num_keep].sort().values for _ in range(crops)])
    assignment = torch.stack([row[torch.randint(num_keep, (num_tokens,))] for row in keep])
    assignment.scatter_(1, keep, keep)
    return ReducedTokens(
        features=torch.zeros(crops, num_keep, 1),
        keep_indices=keep,
        valid=torch.rand(crops, num_keep) < 0.8,
        assignment=assignment,
        scores=torch.rand(crops, num_keep),
        grid_size=grid_size,
    )


def area(ring):
    x, y = np.array(ring).T
    return (x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2


@given(
    size=st.tuples(st.integers(14, 900), st.integers(14, 900)),
    crops=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    seed=st.integers(0, 99),
)
def test_boxes_lie_where_the_overlay_shows_tokens(size, crops, seed):
    crop_rows, crop_cols = crops
    canvas = imagery.Canvas(size, (56 * crop_cols, 56 * crop_rows), 56)
    tokens = SceneTokens(kept_tokens(crop_rows * crop_cols, (4, 4), 5, seed), canvas)
    roots = torch.from_numpy(overlay.token_maps(tokens)[0])
    left, top, right, bottom = canvas.image_box
    collection = geojson.token_features(tokens)
    found = torch.zeros_like(roots)
    for feature in collection["features"]:
        box = feature["properties"]["pixel_box"]
        middle_x = (box[0] + box[2]) / 2 * (right - left) / size[0] + left
        middle_y = (box[1] + box[3]) / 2 * (bottom - top) / size[1] + top
        found[int(middle_y / 14), int(middle_x / 14)] = True
        ring = feature["geometry"]["coordinates"][0]
        assert ring[0] == ring[-1]
        assert area(ring) == pytest.approx((box[2] - box[0]) * (box[3] - box[1]), rel=0.1, abs=1)
        assert 0 <= box[0] < box[2] <= size[0]
        assert 0 <= box[1] < box[3] <= size[1]
    y, x = torch.meshgrid(*(torch.arange(n) for n in roots.shape), indexing="ij")
    inside = (14 * x < right) & (14 * (x + 1) > left) & (14 * y < bottom) & (14 * (y + 1) > top)
    assert torch.equal(found, roots & inside)
    assert collection["coordinates"] == "pixels"


@pytest.mark.parametrize("turn", [0, 30])
def test_map_coordinates(turn, tmp_path):
    transform = NORTH_UP @ rasterio.Affine.rotation(turn)
    path = write(tmp_path / "scene.tif", rgb(112, 56), transform=transform)
    kept = kept_tokens(2, (4, 4), 3)
    with imagery.open_scene(path) as scene:
        canvas = imagery.Canvas(scene.size, (112, 56), 56)
        collection = geojson.token_features(SceneTokens(kept, canvas, scene.georeference))
    assert len(collection["features"]) == int(kept.valid.sum())
    assert "coordinates" not in collection
    for feature in collection["features"]:
        properties, ring = feature["properties"], feature["geometry"]["coordinates"][0]
        assert area(ring) > 0  # counterclockwise
        x, y = rasterio.warp.transform("EPSG:4326", UTM, *zip(*ring, strict=True))
        pixels = [~transform @ point for point in zip(x, y, strict=True)]
        left, top = np.min(pixels, axis=0)
        right, bottom = np.max(pixels, axis=0)
        np.testing.assert_allclose(properties["pixel_box"], [left, top, right, bottom], atol=0.01)
        assert 13.5 < ring[0][0] < 14.5  # degrees east, first
        assert 44 < ring[0][1] < 46
        slot = kept.keep_indices[properties["crop"]].tolist().index(properties["token"])
        assert properties["score"] == pytest.approx(float(kept.scores[properties["crop"], slot]))
        assert properties["tokens"] == int(kept.counts[properties["crop"], slot])


def test_command_line(run, tmp_path):
    path = write(tmp_path / "scene.tif", rgb(672, 336))
    target = tmp_path / "tokens.geojson"
    options = ("--json", "--max-new-tokens", 1, "--tokens-geojson", target)
    code, out, err = run("ask", path, "What?", *options)
    assert code == 0, err
    collection = json.loads(target.read_text())
    assert len(collection["features"]) == json.loads(out)["tokens_after"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scene.tif", "tokens.geojson"]
    code, _, err = run("ask", path, "What?", "--tokens-geojson", tmp_path / "tokens.shp")
    assert (code, err) == (
        2,
        "error: the GeoJSON file must end in .geojson, .json, got tokens.shp\n",
    )
