"""Files in, crops out; hostile files kept out."""

from __future__ import annotations

import errno
import math
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from geollava import imagery
from geollava.imagery.resizer import fastest_passes
from tests.geollava.conftest import noise


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
        "moving.gif": "must be an image",
    }


def read_scene(path):
    with imagery.open_scene(path) as scene:
        imagery.resized(scene, (28, 28))


def test_bad_files_are_refused_by_name(tmp_path):
    for name, message in bad_files(tmp_path).items():
        for read in (imagery.read_image, read_scene):
            with pytest.raises(ValueError, match=message) as error:
                read(tmp_path / name)
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


sizes = st.tuples(st.integers(1, 200), st.integers(1, 200))
canvas_sizes = st.tuples(st.integers(1, 4), st.integers(1, 4)).map(
    lambda grid: (grid[0] * 28, grid[1] * 28)
)


def put_together(rows) -> np.ndarray:
    """Rows of crops -> the canvas, [height, width, 3]."""
    whole = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
    assert whole.dtype == torch.uint8
    return whole.permute(1, 2, 0).numpy()


def resized_by_pillow(image, canvas) -> np.ndarray:
    """The published canvas: Pillow's resize of the whole image, centered on black."""
    box = canvas.image_box
    framed = Image.new("RGB", canvas.size)
    framed.paste(
        image.resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.BICUBIC), box[:2]
    )
    return np.asarray(framed)


@given(size=sizes, canvas=canvas_sizes)
def test_canvas_holds_the_whole_image_centered_on_black(size, canvas):
    image = Image.new("RGB", size, (255, 255, 255))
    fitted = imagery.Canvas(size, canvas, 28)
    pixels = put_together(imagery.crop_rows(imagery.as_scene(image), fitted))
    left, top, right, bottom = fitted.image_box
    assert pixels.shape == (canvas[1], canvas[0], 3)
    assert (pixels[top:bottom, left:right] == 255).all()
    assert pixels.sum(dtype=np.int64) == 255 * 3 * (right - left) * (bottom - top)
    assert right - left == canvas[0] or bottom - top == canvas[1]
    assert abs(left - (canvas[0] - right)) <= 1
    assert abs(top - (canvas[1] - bottom)) <= 1


@pytest.fixture(params=["pillow and numpy", "numba"])
def passes(request, monkeypatch):
    """The passes of the resize that images of every size go through."""
    compiled = request.param == "numba"
    if compiled:
        pytest.importorskip("numba")
        assert fastest_passes().__name__.endswith("resample_compiled")
    monkeypatch.setattr("geollava.imagery.resizer.COMPILED_PIXELS", 0 if compiled else math.inf)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=sizes, canvas=canvas_sizes, seed=st.integers(0, 99))
def test_crops_are_cut_from_what_pillow_makes_of_the_whole_image(passes, size, canvas, seed):
    image, fitted = noise(*size, seed=seed), imagery.Canvas(size, canvas, 28)
    pixels = put_together(imagery.crop_rows(imagery.as_scene(image), fitted))
    assert np.array_equal(pixels, resized_by_pillow(image, fitted))


@pytest.mark.parametrize("size", [(2500, 1700), (1700, 2500), (700, 3000), (20_000, 14)])
def test_large_images_in_blocks(size, passes, monkeypatch):
    monkeypatch.setattr("geollava.imagery.resizer.BLOCK_BYTES", 2**18)
    image = noise(*size)
    canvas = imagery.Canvas.choose(size, imagery.allowed_canvases(336, 24, 49), 336)
    pixels = put_together(imagery.crop_rows(imagery.as_scene(image), canvas))
    assert np.array_equal(pixels, resized_by_pillow(image, canvas))


def test_large_images_without_numba():
    """...in a process of its own: what is loaded stays loaded."""
    script = """
import sys
sys.modules["numba"] = None
import numpy as np
from PIL import Image
from geollava import imagery
from geollava.imagery import resizer
resizer.COMPILED_PIXELS = 0
image = Image.effect_noise((200, 150), 99).convert("RGB")
pixels = np.asarray(imagery.resized(imagery.as_scene(image), (140, 105)))
assert (pixels == np.asarray(image.resize((140, 105), Image.Resampling.BICUBIC))).all()
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@given(st.integers(1, 5), st.integers(1, 5))
def test_crops_put_together_are_the_canvas(rows, cols):
    canvas = np.asarray(noise(cols * 28, rows * 28))
    crops = imagery.cut_crops(canvas.copy(), 28)
    assert np.array_equal(put_together(crops.split(cols)), canvas)


def test_crops_are_not_made_far_ahead_of_who_takes_them():
    class Counting(imagery.Scene):
        size, reads = (28, 28 * 100), 0

        def read_rows(self, top, bottom, factor):
            self.reads += 1
            return np.zeros((bottom - top, 28, 3), dtype=np.uint8)

    scene = Counting()
    rows = imagery.crop_rows(scene, imagery.Canvas(scene.size, scene.size, 28))
    assert scene.reads == 0
    next(rows)
    assert scene.reads < 10
    rows.close()
    assert scene.reads < 10


def test_fast_decodes_a_jpeg_at_half_its_size(tmp_path):
    """...where that still holds the canvas, at little cost."""
    small = noise(60, 40).resize((1800, 1200), Image.Resampling.BICUBIC)
    small.save(tmp_path / "image.jpg", quality=95)
    canvas = imagery.Canvas(small.size, (672, 672), 336)
    pillow, fast = (
        put_together(
            imagery.crop_rows(imagery.open_scene(tmp_path / "image.jpg"), canvas, resize)
        ).astype(int)
        for resize in imagery.RESIZE_MODES
    )
    assert 0 < np.abs(pillow - fast).mean() <= 2
    with pytest.raises(ValueError, match="resize must be one of pillow, fast"):
        next(imagery.crop_rows(imagery.as_scene(small), canvas, "fastest"))


@pytest.mark.parametrize("kind", ["deep.png", "deep.tif", "float.tif"])
def test_deeper_gray_is_stretched(kind, tmp_path):
    deep = np.linspace(1000, 3000, 300 * 200).reshape(200, 300)
    image = Image.fromarray(deep.astype(np.float32 if kind == "float.tif" else np.uint16))
    image.save(tmp_path / kind)
    pixels = np.asarray(imagery.read_image(tmp_path / kind)).astype(int)
    low, high = np.percentile(deep, [2, 98])
    expected = np.clip((deep - low) / (high - low) * 255, 0, 255)
    assert (pixels.max(2) == pixels.min(2)).all()
    assert np.abs(pixels[..., 0] - expected).max() < 2


def test_bands_of_a_picture(tmp_path):
    image = noise(60, 40)
    image.save(tmp_path / "image.png")
    pixels = np.asarray(image)
    for bands, channels in (((3, 2, 1), [2, 1, 0]), ((2,), [1, 1, 1])):
        scene = imagery.open_scene(tmp_path / "image.png", bands=bands)
        assert np.array_equal(scene.read_rows(0, 40, 1), pixels[..., channels])
    for bands, message in (
        ((4, 3, 2), "1 to 3, got"),
        ((1, 2), "one or three"),
        ((0, 1, 2), "from 1"),
    ):
        with pytest.raises(ValueError, match=message):
            imagery.open_scene(tmp_path / "image.png", bands=bands)


@pytest.mark.parametrize(
    "path", ["https://host/image.tif", "/vsicurl/https://host/a.tif", "s3://b/a"]
)
def test_network_paths_are_refused(path):
    with pytest.raises(ValueError, match="network paths are not read") as error:
        imagery.open_scene(path)
    assert str(error.value).startswith(f"{path} must be a file on this machine")


@pytest.fixture
def unreadable(tmp_path, monkeypatch):
    """An image file that this user may not read. Root may read all, so the opening is refused."""
    path = tmp_path / "image.jpg"
    noise(60, 40).save(path)
    path.chmod(0)
    if os.access(path, os.R_OK):
        allowed = Path.open

        def refuse(file, *args, **kwargs):
            if file == path:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
            return allowed(file, *args, **kwargs)

        # Not `io.open`: Python 3.10 keeps that function where `pathlib` is imported.
        monkeypatch.setattr(Path, "open", refuse)
    yield path
    path.chmod(0o600)


def test_a_file_that_may_not_be_read(unreadable, run):
    code, out, err = run("ask", unreadable, "How many ships?")
    assert (code, out) == (2, "")
    assert err == f"error: {unreadable} cannot be read: Permission denied\n"


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to nothing", "other server"])
def test_what_is_no_file_is_refused_at_once(kind, tmp_path, run):
    path = tmp_path / "image.jpg"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to nothing":
        path.symlink_to(tmp_path / "nothing")
    else:
        path = "//no-such-server/share/image.jpg"
    code, out, err = run("ask", path, "How many ships?")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert str(path) in err


def test_crops_are_made_on_the_cpu_in_float32_whatever_torch_is_set_to():
    scene = imagery.as_scene(noise(60, 40))
    canvas = imagery.Canvas(scene.size, (28, 28), 14)
    expected = imagery.all_crops(scene, canvas)
    normalized = imagery.normalize_crops(expected, [0.5] * 3, [0.25] * 3)
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            crops = imagery.all_crops(scene, canvas)
            again = imagery.normalize_crops(crops, [0.5] * 3, [0.25] * 3)
    finally:
        torch.set_default_dtype(previous)
    assert torch.equal(crops, expected)
    assert torch.equal(again, normalized)
