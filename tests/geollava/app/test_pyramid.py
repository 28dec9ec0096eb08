"""Tiles put together again are the scene, whole and reduced, whatever its size."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from geollava.app.pyramid import Pyramid, level_sizes, tiles_of
from geollava.imagery import as_scene
from tests.geollava.conftest import noise

SIZES = [(20, 30), (256, 256), (257, 255), (700, 1300), (1025, 513), (1100, 770)]


def level_of(pyramid, level):
    """A level as an image, of all its tiles."""
    size = level_sizes(pyramid.size)[level]
    image, (cols, rows) = Image.new("RGB", size), tiles_of(size)
    for col in range(cols):
        for row in range(rows):
            tile = Image.open(io.BytesIO(pyramid.tile(level, col, row)))
            image.paste(tile, (256 * col, 256 * row))
    return image


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_level_is_the_image_reduced(size, tmp_path):
    # Smooth, so that JPEG hardly changes it.
    image = noise(4, 4).resize(size, Image.Resampling.BICUBIC)
    pyramid = Pyramid.build(as_scene(image), tmp_path / "tiles")
    levels = level_sizes(size)
    assert max(levels[-1]) <= 256
    for level, expected in enumerate(levels):
        found, whole = level_of(pyramid, level), image.reduce(2**level)
        assert found.size == whole.size == expected
        difference = np.abs(np.asarray(found).astype(int) - np.asarray(whole))
        assert difference.max() < 16, level
        assert difference.mean() < 2, level


def test_what_is_no_tile(tmp_path):
    pyramid = Pyramid.build(as_scene(noise(300, 300)), tmp_path / "tiles")
    for place in ((-1, 0, 0), (2, 0, 0), (0, 2, 0), (0, 0, 2), (1, 1, 0), (0, -1, 0)):
        with pytest.raises(LookupError, match="got"):
            pyramid.tile(*place)
    pyramid.path.unlink()
    with pytest.raises(LookupError, match="closed"):
        pyramid.tile(0, 0, 0)


def test_a_full_disk_and_a_caller_that_ends_it(tmp_path, monkeypatch):
    def stop():
        raise KeyError

    with pytest.raises(KeyError):
        Pyramid.build(as_scene(noise(300, 300)), tmp_path / "tiles", stop)
    full = type("Usage", (), {"free": 2**20})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: full)
    with pytest.raises(ValueError, match="must fit twice on the server's disk"):
        Pyramid.build(as_scene(noise(800, 800)), tmp_path / "tiles")
