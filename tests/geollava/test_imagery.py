"""Files in, crops out; hostile files kept out."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from geollava import imagery

from .conftest import noise


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises width x height pixels and holds next to none."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def bad_files(folder):
    """name -> what the message must say."""
    noise(300, 200).save(folder / "whole.jpg")
    noise(300, 200).save(folder / "whole.png")
    for name in ("whole.jpg", "whole.png"):
        content = (folder / name).read_bytes()
        (folder / f"truncated{name[-4:]}").write_bytes(content[: len(content) // 2])
    (folder / "zero.jpg").touch()
    (folder / "text.tif").write_text("this is not a picture")
    noise(1, 1).save(folder / "dot.png")
    (folder / "bomb.png").write_bytes(png_header(60_000, 60_000))
    deep = np.arange(300 * 200, dtype=np.uint16).reshape(200, 300)
    Image.fromarray(deep).save(folder / "deep.png")
    Image.fromarray(deep).save(folder / "deep.tif")
    Image.fromarray(deep.astype(np.float32)).save(folder / "float.tif")
    noise(300, 200).save(folder / "moving.gif")
    return {
        "nowhere.jpg": "does not exist",
        ".": "it is not a file",
        "truncated.jpg": "cannot be decoded: .*truncated",
        "truncated.png": "cannot be decoded: .*truncated",
        "zero.jpg": "empty",
        "text.tif": "must be an image",
        "dot.png": "1 x 1 pixels",
        "bomb.png": "60000 x 60000 = 3,600 megapixels, more than the limit",
        "deep.png": "mode I;16",
        "deep.tif": "mode I;16",
        "float.tif": "mode F",
        "moving.gif": "must be an image",
    }


def test_bad_files_are_refused_by_name(tmp_path):
    for name, message in bad_files(tmp_path).items():
        with pytest.raises(ValueError, match=message) as error:
            imagery.read_image(tmp_path / name)
        assert "\n" not in str(error.value)
    assert Image.MAX_IMAGE_PIXELS is not None  # Pillow's own guard stands as before


def test_limit_is_the_callers(tmp_path):
    noise(300, 200).save(tmp_path / "image.png")
    with pytest.raises(ValueError, match="more than the limit"):
        imagery.read_image(tmp_path / "image.png", max_pixels=300 * 200 - 1)
    assert imagery.read_image(tmp_path / "image.png", max_pixels=300 * 200).size == (300, 200)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "RGBA", "CMYK", "RGB", "PA"])
def test_other_modes_become_rgb_as_pillow_does(mode, tmp_path):
    image = noise(90, 70).convert("RGBA").convert("P" if mode == "PA" else "RGB")
    image = image.convert(mode)
    path = tmp_path / f"image.{'tif' if mode in ('CMYK', 'PA') else 'png'}"
    try:
        image.save(path)
    except OSError:
        pytest.fail(f"the test must be able to write mode {mode}")
    got = imagery.read_image(path)
    assert got.mode == "RGB"
    assert np.array_equal(np.asarray(got), np.asarray(Image.open(path).convert("RGB")))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_formats(suffix, tmp_path):
    noise(90, 70).save(tmp_path / f"image.{suffix}")
    assert imagery.read_image(tmp_path / f"image.{suffix}").size == (90, 70)


def test_allowed_canvases_of_the_published_8k_configuration():
    canvases = imagery.allowed_canvases(336, 576, 49)
    assert len(canvases) == 2239
    assert canvases[:2] == [[336, 672], [336, 1008]]
    assert [8064, 8064] in canvases
    assert [336, 336] not in canvases


def plain_select(width, height, canvases):
    """The rule in so many words: most pixels shown, then least waste, then first."""
    ranked = []
    for index, (w, h) in enumerate(canvases):
        s = min(w / width, h / height)
        effective = min(int(width * s) * int(height * s), width * height)
        ranked.append((-effective, w * h - effective, index))
    return tuple(canvases[min(ranked)[2]])


@given(st.integers(1, 30_000), st.integers(1, 30_000))
def test_select_canvas(width, height):
    canvases = imagery.allowed_canvases(336, 576, 49)
    assert imagery.select_canvas(width, height, canvases) == plain_select(width, height, canvases)


@given(
    size=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_canvas_holds_the_whole_image_centered_on_black(size, grid):
    canvas = (grid[0] * 28, grid[1] * 28)
    image = Image.new("RGB", size, (255, 255, 255))
    pixels = np.asarray(imagery.fit_canvas(image, canvas))
    left, top, right, bottom = imagery.image_box(size, canvas)
    assert pixels.shape == (canvas[1], canvas[0], 3)
    assert (pixels[top:bottom, left:right] == 255).all()
    assert pixels.sum() == 255 * 3 * (right - left) * (bottom - top)
    assert right - left == canvas[0] or bottom - top == canvas[1]
    assert abs(left - (canvas[0] - right)) <= 1
    assert abs(top - (canvas[1] - bottom)) <= 1


@given(st.integers(1, 5), st.integers(1, 5))
def test_crops_put_together_are_the_canvas(rows, cols):
    canvas = noise(cols * 28, rows * 28)
    crops = imagery.cut_crops(canvas, 28)
    assert crops.dtype == torch.uint8
    whole = torch.cat([torch.cat(list(row), dim=2) for row in crops.split(cols)], dim=1)
    assert np.array_equal(whole.permute(1, 2, 0).numpy(), np.asarray(canvas))
