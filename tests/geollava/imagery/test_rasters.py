"""Rasters of all kinds, made here: what becomes of their pixels, and which are refused."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from geollava import imagery
from geollava.imagery.reader import open_here
from tests.geollava.conftest import noise, vrt

rasterio = pytest.importorskip("rasterio")
from rasterio.transform import Affine  # noqa: E402

UTM = "EPSG:32633"
NORTH_UP = Affine(0.5, 0, 400_000, 0, -0.5, 5_000_000)


def write(path, samples, *, driver="GTiff", palette=None, mask=None, **options):
    """[bands, H, W] -> a raster file."""
    bands, height, width = samples.shape
    profile = {"crs": UTM, "transform": NORTH_UP} | options
    with rasterio.open(
        path, "w", driver=driver, width=width, height=height, count=bands, dtype=samples.dtype,
        **profile,
    ) as dataset:  # fmt: skip
        dataset.write(samples)
        if palette:
            dataset.write_colormap(1, palette)
        if mask is not None:
            dataset.write_mask(mask)
    return path


def rgb(width, height, seed=0):
    return np.moveaxis(np.asarray(noise(width, height, seed)), -1, 0)


def rows(scene, factor=1):
    height = -(-scene.size[1] // factor)
    return scene.read_rows(0, height, factor)


def canvas_of(scene, canvas, crop_size):
    rows = imagery.crop_rows(scene, imagery.Canvas(scene.size, canvas, crop_size))
    pixels = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
    return pixels.permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"},
        {"tiled": True, "blockxsize": 128, "blockysize": 128, "interleave": "pixel"},
        {"driver": "COG", "compress": "deflate", "blocksize": 128},
        {"BIGTIFF": "YES"},
    ],
    ids=str,
)
def test_8_bit_rgb_is_to_the_bit_what_pillow_makes_of_it(options, tmp_path):
    samples = rgb(700, 500)
    with imagery.open_scene(write(tmp_path / "scene.tif", samples, **options)) as scene:
        assert scene.size == (700, 500)
        image = Image.fromarray(np.moveaxis(samples, 0, -1))
        expected = Image.new("RGB", (336, 336))
        expected.paste(image.resize((336, 240), Image.Resampling.BICUBIC), (0, 48))
        assert np.array_equal(canvas_of(scene, (336, 336), 56), np.asarray(expected))


def test_16_bits_four_bands_and_no_data(tmp_path):
    generator = np.random.default_rng(0)
    samples = generator.integers(1000, 5000, (4, 300, 400)).astype(np.uint16)
    samples[:, :100, :100] = 0
    path = write(tmp_path / "scene.tif", samples, nodata=0)
    with imagery.open_scene(path, bands=(4, 3, 2)) as scene:
        pixels = rows(scene).astype(int)
    assert (pixels[:100, :100] == 0).all()
    valid = samples[:, samples[0] > 0]
    for channel, band in enumerate((3, 2, 1)):
        low, high = np.percentile(valid[band], [2, 98])  # of what is valid alone
        expected = np.clip((samples[band] - low) / (high - low) * 255, 0, 255)
        expected[:100, :100] = 0
        assert np.abs(pixels[..., channel] - expected).max() <= 1
    with imagery.open_scene(path) as scene:
        first_three = rows(scene).astype(int)
    assert np.array_equal(first_three[..., 2], pixels[..., 1])  # band 3
    with imagery.open_scene(path, bands=(2,)) as scene:
        assert np.array_equal(rows(scene), np.repeat(pixels[..., 2:], 3, axis=2))
    with pytest.raises(ValueError, match="are 1 to 4, got 5, 3, 2"):
        imagery.open_scene(path, bands=(5, 3, 2))


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint32", "float32", "float64"])
def test_other_depths_are_stretched(dtype, tmp_path):
    ramp = np.linspace(-100, 100, 300 * 200).reshape(1, 200, 300)
    samples = (ramp + 100 if dtype == "uint32" else ramp).astype(dtype)
    kind = np.dtype(dtype).kind
    if kind == "f":
        samples[0, 0, :3] = np.nan, np.inf, -np.inf
    with imagery.open_scene(write(tmp_path / "scene.tif", samples)) as scene:
        pixels = rows(scene).astype(int)
    low, high = np.percentile(samples[np.isfinite(samples)].astype(float), [2, 98])
    expected = np.clip((samples[0].astype(float) - low) / (high - low) * 255, 0, 255)
    if kind == "f":
        expected[0, :3] = 0
    assert np.abs(pixels[..., 0] - expected).max() <= 1


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("kind", ["tif", "jp2", "white.tif"])
def test_samples_of_few_bits_are_spread_over_8(bits, kind, tmp_path):
    most = 2**bits - 1
    samples = np.random.default_rng(0).integers(0, most + 1, (3, 64, 96)).astype(np.uint8)
    options = {"QUALITY": 100, "REVERSIBLE": "YES", "driver": "JP2OpenJPEG"}
    if kind == "white.tif":
        samples, options = samples[:1], {"photometric": "MINISWHITE"}
    elif kind == "tif":
        options = {"photometric": "RGB"}
    path = write(tmp_path / f"scene.{kind}", samples, NBITS=bits, **options)
    with imagery.open_scene(path) as scene:
        pixels = rows(scene)
    expected = np.round(np.moveaxis(samples, 0, -1) * (255 / most)).astype(np.uint8)
    assert np.array_equal(pixels, 255 - expected.repeat(3, 2) if len(samples) == 1 else expected)
    if bits == 4 and len(samples) == 1:
        with Image.open(path) as image:
            assert np.array_equal(pixels[..., 0], np.asarray(image))


@pytest.mark.parametrize("value", [0, 700, 65_535])
def test_a_scene_of_one_value_is_even(value, tmp_path):
    samples = np.full((3, 64, 64), value, dtype=np.uint16)
    with imagery.open_scene(write(tmp_path / "scene.tif", samples)) as scene:
        assert len(np.unique(rows(scene))) == 1


def test_a_scene_without_any_data_is_background(tmp_path):
    samples = np.full((3, 64, 64), np.nan, dtype=np.float32)
    with imagery.open_scene(write(tmp_path / "scene.tif", samples, nodata=np.nan)) as scene:
        assert (rows(scene) == 0).all()


def test_a_mask_in_the_file(tmp_path):
    samples, mask = rgb(64, 48), np.full((48, 64), 255, dtype=np.uint8)
    mask[:20] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        path = write(tmp_path / "scene.tif", samples, mask=mask)
    with imagery.open_scene(path) as scene:
        assert np.array_equal(rows(scene), np.moveaxis(samples, 0, -1) * (mask > 0)[..., None])


def test_alpha_is_dropped_as_the_published_pipeline_does(tmp_path):
    samples = np.concatenate([rgb(64, 48), np.zeros((1, 48, 64), dtype=np.uint8)])
    path = write(tmp_path / "scene.tif", samples, photometric="RGB", alpha="yes")
    with imagery.open_scene(path) as scene:
        assert np.array_equal(rows(scene), np.moveaxis(samples[:3], 0, -1))


@pytest.mark.parametrize("interleave", ["pixel", "band"])
def test_a_pixel_is_no_data_where_all_its_bands_are(interleave, tmp_path):
    samples = np.minimum(rgb(64, 48), 254)
    samples[0, :20] = 255  # bright sand
    samples[:, 30:] = 255
    path = write(tmp_path / "scene.tif", samples, nodata=255, interleave=interleave)
    expected = np.moveaxis(samples, 0, -1).copy()
    expected[30:] = 0
    with imagery.open_scene(path) as scene:
        assert np.array_equal(rows(scene), expected)
    with imagery.open_scene(path, bands=(1,)) as scene:  # the other bands say what it is
        assert (rows(scene)[:20] == 255).all()
        assert (rows(scene)[30:] == 0).all()


def test_alpha_does_not_say_what_is_no_data(tmp_path):
    samples = np.concatenate([rgb(64, 48), np.full((1, 48, 64), 9, dtype=np.uint8)])
    samples[:3, :10] = 0
    samples[0, 10:20] = 0
    path = write(tmp_path / "scene.tif", samples, photometric="RGB", alpha="yes", nodata=0)
    with imagery.open_scene(path) as scene:
        assert np.array_equal(rows(scene), np.moveaxis(samples[:3], 0, -1))


def deep_rgb():
    """[3, 60, 90] uint16 of 12 bits."""
    return np.random.default_rng(0).integers(100, 4000, (3, 60, 90)).astype(np.uint16)


def stretched(samples):
    low, high = np.percentile(samples, [2, 98], axis=(1, 2), keepdims=True)
    return np.clip((samples - low) / (high - low) * 255, 0, 255)


@pytest.mark.parametrize("kind", ["RGB png", "gray and alpha png", "plain tif"])
def test_pictures_of_16_bits_are_stretched(kind, tmp_path):
    samples = deep_rgb()
    path = tmp_path / f"scene.{kind[-3:]}"
    if kind.startswith("gray"):
        samples = np.concatenate([samples[:1], np.full_like(samples[:1], 65_535)])
    driver = "GTiff" if kind.endswith("tif") else "PNG"
    options = {"crs": None, "transform": None, "driver": driver}
    if driver == "GTiff":
        options |= {"photometric": "RGB", "interleave": "pixel"}
    write(path, samples, **options)
    shown = np.repeat(samples[:1], 3, axis=0) if kind.startswith("gray") else samples
    for pixels in (rows(imagery.open_scene(path)), np.asarray(imagery.read_image(path))):
        assert np.abs(np.moveaxis(pixels, -1, 0) - stretched(shown)).max() <= 1


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("crs", [None, UTM])
def test_where_0_is_white(dtype, crs, tmp_path):
    ramp = np.arange(256, dtype=dtype)[None].repeat(64, 0)[None]
    path = write(tmp_path / "scene.tif", ramp, photometric="MINISWHITE", crs=crs, transform=None)
    with imagery.open_scene(path) as scene:
        pixels = rows(scene)[0, :, 0].astype(int)
    assert pixels[0] == 255
    assert pixels[-1] == 0
    assert (np.diff(pixels) <= 0).all()


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_pixels_come_as_they_are_stored_whatever_exif_says(suffix, tmp_path):
    image, exif = noise(90, 60), Image.Exif()
    exif[274] = 6  # a quarter turn
    lossless = {"lossless": True} if suffix == "webp" else {}
    path = tmp_path / f"image.{suffix}"
    image.save(path, exif=exif, **lossless)
    with imagery.open_scene(path) as scene:
        assert scene.size == (90, 60)
        if suffix != "jpg":
            assert np.array_equal(rows(scene), np.asarray(image))


@pytest.mark.parametrize("orientation", [*range(10), 300])
@pytest.mark.parametrize(
    "kind", ["jpg", "png", "webp", "tif", "gray.png", "deep.png", "palette.png"]
)
def test_pixels_are_turned_as_exif_says(kind, orientation, tmp_path):
    image, exif = noise(90, 60), Image.Exif()
    image = {"gray.png": image.convert("L"), "palette.png": image.quantize(16)}.get(kind, image)
    if kind == "deep.png":
        image = Image.fromarray(np.random.default_rng(0).integers(0, 9999, (60, 90), np.uint16))
    exif[274] = orientation
    path = tmp_path / f"image.{kind}"
    image.save(path, exif=exif, **({"lossless": True} if kind == "webp" else {}))
    with imagery.open_scene(path) as stored, imagery.open_scene(path, exif="applied") as scene:
        assert stored.size == (90, 60)
        upright = Image.fromarray(rows(stored))
        upright.getexif()[274] = orientation
        expected = np.asarray(ImageOps.exif_transpose(upright))
        assert scene.size == (expected.shape[1], expected.shape[0])
        for step in (7, 90):
            parts = [
                scene.read_rows(top, min(top + step, scene.size[1]), 1)
                for top in range(0, scene.size[1], step)
            ]
            assert np.array_equal(np.concatenate(parts), expected)
        if kind == "jpg":
            assert rows(scene, 4).shape == (-(-scene.size[1] // 4), -(-scene.size[0] // 4), 3)
        with Image.open(path) as pillow:
            assert scene.size == ImageOps.exif_transpose(pillow).size


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("big", ["YES", "NO"])
def test_rasters_are_turned_as_their_tag_says(order, big, tmp_path):
    samples = np.random.default_rng(0).integers(0, 9999, (4, 60, 90)).astype(np.uint16)
    options = {"crs": None, "transform": None, "BIGTIFF": big, "ENDIANNESS": order.upper()}
    path = write(tmp_path / "scene.tif", samples, **options)
    with imagery.open_scene(path, bands=(4, 3, 2)) as scene:
        stored = rows(scene)
    set_orientation(path, 6)
    with imagery.open_scene(path, bands=(4, 3, 2), exif="applied") as scene:
        assert scene.size == (60, 90)
        assert np.array_equal(rows(scene), np.rot90(stored, -1))
    with imagery.open_scene(path, bands=(4, 3, 2)) as scene:
        assert np.array_equal(rows(scene), stored)


def set_orientation(path, value):
    """Writes the directory of a TIFF's tags anew behind its pixels, with one tag more."""
    content = bytearray(path.read_bytes())
    order, big = "<" if content[:2] == b"II" else ">", 43 in content[2:4]
    offset, number = (order + "Q", order + "Q") if big else (order + "I", order + "H")
    header, length = (8, 20) if big else (4, 12)
    (place,) = struct.unpack_from(offset, content, header)
    (count,) = struct.unpack_from(number, content, place)
    first = place + struct.calcsize(number)
    tags = [bytes(content[first + n * length :][:length]) for n in range(count)]
    room = 8 if big else 4
    tags.append(
        struct.pack(order + "HH", 274, 3)
        + struct.pack(offset, 1)
        + struct.pack(order + "H", value).ljust(room, b"\0")
    )
    tags.sort(key=lambda tag: struct.unpack(order + "H", tag[:2]))
    struct.pack_into(offset, content, header, len(content))
    path.write_bytes(content + struct.pack(number, count + 1) + b"".join(tags) + bytes(room))


def test_a_place_on_the_earth_is_not_turned(tmp_path):
    path = write(tmp_path / "scene.tif", rgb(64, 48))
    set_orientation(path, 3)
    with pytest.raises(NotImplementedError, match=r"must have orientation 1 .* got 3: read it as"):
        imagery.open_scene(path, exif="applied")
    with imagery.open_scene(path) as scene:
        assert scene.georeference is not None
    with pytest.raises(ValueError, match="exif must be one of stored, applied, got turned"):
        imagery.open_scene(path, exif="turned")


def test_exif_behind_the_pixels_of_a_png(tmp_path):
    image, exif = noise(90, 60), Image.Exif()
    exif[274] = 8
    image.save(tmp_path / "image.png")
    content, data = (tmp_path / "image.png").read_bytes(), exif.tobytes(8)[6:]
    chunk = b"eXIf" + data
    late = struct.pack(">I", len(data)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "image.png").write_bytes(content[:-12] + late + content[-12:])
    with imagery.open_scene(tmp_path / "image.png", exif="applied") as scene:
        assert np.array_equal(rows(scene), np.rot90(np.asarray(image)))
    damaged = content[:-12] + late.replace(data[:2], b"??") + content[-12:]
    (tmp_path / "image.png").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"image\.png has damaged EXIF data: "):
        imagery.open_scene(tmp_path / "image.png", exif="applied")


def test_colors_are_found_by_name(tmp_path):
    path = write(tmp_path / "scene.tif", rgb(64, 48))
    with rasterio.open(path, "r+") as dataset:
        colors = rasterio.enums.ColorInterp
        dataset.colorinterp = [colors.blue, colors.green, colors.red]
    with imagery.open_scene(path) as scene:
        assert np.array_equal(rows(scene), np.moveaxis(rgb(64, 48), 0, -1)[..., ::-1])


def test_palettes(tmp_path):
    entries = np.random.default_rng(0).integers(0, 4, (1, 300, 400)).astype(np.uint8)
    colors = {0: (0, 0, 0), 1: (250, 10, 10), 2: (10, 250, 10), 3: (10, 10, 250)}
    expected = np.array(list(colors.values()))[entries[0]]
    with imagery.open_scene(write(tmp_path / "scene.tif", entries, palette=colors)) as scene:
        assert np.array_equal(rows(scene), expected)
        reduced = rows(scene, factor=4).reshape(-1, 3)
    assert {tuple(color) for color in reduced.tolist()} <= set(colors.values())

    image = Image.fromarray(entries[0])
    image.putpalette([channel for color in colors.values() for channel in color])
    image.save(tmp_path / "scene.png")
    with imagery.open_scene(tmp_path / "scene.png") as scene:
        assert np.array_equal(rows(scene), expected)


def test_jpeg_2000(tmp_path):
    samples = np.moveaxis(np.asarray(noise(40, 30).resize((400, 300))), -1, 0)
    lossless = {"QUALITY": 100, "REVERSIBLE": "YES"}
    path = write(tmp_path / "scene.jp2", samples, driver="JP2OpenJPEG", **lossless)
    with imagery.open_scene(path) as scene:
        assert scene.georeference is not None
        assert np.array_equal(rows(scene), np.moveaxis(samples, 0, -1))


def test_place_on_the_earth_is_kept_rotated_or_not(tmp_path):
    turned = NORTH_UP @ Affine.rotation(30)
    for transform in (NORTH_UP, turned):
        path = write(tmp_path / "scene.tif", rgb(64, 48), transform=transform)
        with imagery.open_scene(path) as scene:
            assert scene.georeference.transform == pytest.approx(tuple(transform)[:6])
            assert rasterio.crs.CRS.from_wkt(scene.georeference.crs).to_epsg() == 32633
            assert np.array_equal(rows(scene), np.moveaxis(rgb(64, 48), 0, -1))
    noise(64, 48).save(tmp_path / "plain.tif")
    with imagery.open_scene(tmp_path / "plain.tif") as scene:
        assert scene.georeference is None


def sparse_cog(path, side, levels):
    """A raster of that size whose overviews alone hold something: half of it is 200, half 100."""
    options = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate"}
    with rasterio.open(
        path, "w", driver="GTiff", width=side, height=side, count=3, dtype="uint8", crs=UTM,
        transform=NORTH_UP, sparse_ok=True, interleave="pixel", **options,
    ):  # fmt: skip
        pass
    if levels:
        with rasterio.open(path, "r+", sparse_ok=True) as dataset:
            dataset.build_overviews(levels, rasterio.enums.Resampling.nearest)
        for level in range(len(levels)):
            with rasterio.open(path, "r+", overview_level=level) as dataset:
                window = ((0, dataset.height // 2), (0, dataset.width))
                shape = (3, dataset.height // 2, dataset.width)
                dataset.write(np.full(shape, 200, dtype=np.uint8), window=window)
                window = ((dataset.height // 2, dataset.height), (0, dataset.width))
                shape = (3, dataset.height - dataset.height // 2, dataset.width)
                dataset.write(np.full(shape, 100, dtype=np.uint8), window=window)
    return path


def test_a_scene_over_30_000_pixels_is_read_from_its_overviews(tmp_path):
    path = sparse_cog(tmp_path / "scene.tif", 31_000, [16, 32])
    with imagery.open_scene(path) as scene:
        assert scene.size == (31_000, 31_000)
        pixels = canvas_of(scene, (672, 672), 336)
    assert (pixels[:330] == 200).all()
    assert (pixels[345:] == 100).all()


def test_8_bit_rgb_that_the_published_pipeline_can_read_is_not_taken_from_overviews(tmp_path):
    path = sparse_cog(tmp_path / "scene.tif", 2000, [2])
    with imagery.open_scene(path) as scene:
        assert (canvas_of(scene, (672, 672), 336) == 0).all()
        canvas = imagery.Canvas(scene.size, (672, 672), 336)
        fast = list(imagery.crop_rows(scene, canvas, "fast"))
        assert (fast[0][:, :, :320] == 200).all()  # further down the filter meets the 100s


MEASURE = """
import sys, resource
from geollava import imagery
from geollava.imagery.isolated import end_workers
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with imagery.open_scene(sys.argv[1]) as scene:
    canvas = imagery.Canvas.choose(scene.size, imagery.allowed_canvases(336, 576, 49), 336)
    crops = sum(len(row) for row in imagery.crop_rows(scene, canvas))
end_workers()
here = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(crops, (here + resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) // 1024)
"""


@pytest.mark.slow
def test_60_000_pixels_a_side_are_read_in_little_memory(tmp_path):
    """Far less than its 10.8 GB, or than the 400 MB of the form it is read from."""
    path = sparse_cog(tmp_path / "scene.tif", 60_000, [4])
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True
    )
    crops, extra_mib = map(int, result.stdout.split())
    assert crops == 576
    assert extra_mib < 600


def test_vrt_of_two_files(tmp_path):
    left, right = rgb(64, 48, seed=1), rgb(64, 48, seed=2)
    (tmp_path / "tiles").mkdir()
    write(tmp_path / "tiles" / "left.tif", left)
    write(tmp_path / "tiles" / "right.tif", right)
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{band}">'
        + "".join(
            f'<SimpleSource><SourceFilename relativeToVRT="1">tiles/{name}.tif</SourceFilename>'
            f'<SourceBand>{band}</SourceBand><SrcRect xOff="0" yOff="0" xSize="64" ySize="48"/>'
            f'<DstRect xOff="{x}" yOff="0" xSize="64" ySize="48"/></SimpleSource>'
            for name, x in (("left", 0), ("right", 64))
        )
        + "</VRTRasterBand>"
        for band in (1, 2, 3)
    )
    transform = ", ".join(str(value) for value in NORTH_UP.to_gdal())
    (tmp_path / "scene.vrt").write_text(
        f'<VRTDataset rasterXSize="128" rasterYSize="48"><SRS>{UTM}</SRS>'
        f"<GeoTransform>{transform}</GeoTransform>{bands}</VRTDataset>"
    )
    with imagery.open_scene(tmp_path / "scene.vrt") as scene:
        expected = np.moveaxis(np.concatenate([left, right], axis=2), 0, -1)
        assert np.array_equal(rows(scene), expected)
        assert scene.georeference.transform == tuple(NORTH_UP)[:6]


HOSTILE_VRTS = {
    "url": (vrt("/vsicurl/http://127.0.0.1:9/a.tif"), "must be a file in the VRT's folder"),
    "network driver": (
        vrt("&lt;GDAL_WMS&gt;&lt;Service name='TMS'/&gt;&lt;/GDAL_WMS&gt;"),
        "must be a file in the VRT's folder",
    ),
    "memory driver": (vrt("MEM:::DATAPOINTER=0x1000,PIXELS=9,LINES=9"), "must be a file"),
    "outside": (vrt("../outside.tif"), "must be a file in the VRT's folder"),
    "absolute": (vrt("/etc/hostname"), "must be a file in the VRT's folder"),
    "link": (vrt("link.tif"), "must be a file in the VRT's folder"),
    "not a TIFF": (vrt("text.txt"), "must be a TIFF or JPEG 2000"),
    "another VRT": (vrt("other.vrt"), "must be a TIFF or JPEG 2000"),
    "two in one": (vrt("both.tif"), "must be a TIFF or JPEG 2000"),
    "python": (
        vrt(
            "inside.tif",
            band='<VRTRasterBand dataType="Byte" band="1" subClass="VRTDerivedRasterBand">'
            "<PixelFunctionLanguage>Python</PixelFunctionLanguage>",
        ),
        "bands of class VRTDerivedRasterBand",
    ),
    "raw": (
        vrt("inside.tif", band='<VRTRasterBand band="1" subClass="VRTRawRasterBand">'),
        "bands of class VRTRawRasterBand",
    ),
    "warped": (
        vrt("inside.tif").replace("<VRTDataset", '<VRTDataset subClass="VRTWarpedDataset"'),
        "plain VRTDataset",
    ),
    "mask band": (vrt("inside.tif", extra="<MaskBand/>"), "a VRT with <MaskBand>"),
    "open options": (
        vrt(
            "inside.tif",
            filename="<SourceFilename>inside.tif</SourceFilename><OpenOptions>"
            '<OOI key="OVERVIEW_LEVEL">1</OOI></OpenOptions>',
        ),
        "a VRT with <OpenOptions>",
    ),
    "entities": (
        "<VRTDataset><!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]>&e;</VRTDataset>",
        "document types or entities",
    ),
    "damaged": ("<VRTDataset rasterXSize='64'", "its XML is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE_VRTS)
def test_hostile_vrts_are_refused(kind, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    write(tmp_path / "outside.tif", rgb(64, 48))
    content = write(folder / "inside.tif", rgb(64, 48)).read_bytes()
    (folder / "both.tif").write_bytes(content[:4] + vrt("../outside.tif").encode())
    (folder / "link.tif").symlink_to(tmp_path / "outside.tif")
    (folder / "text.txt").write_text("text")
    (folder / "other.vrt").write_text(vrt("inside.tif"))
    text, message = HOSTILE_VRTS[kind]
    (folder / "scene.vrt").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        imagery.open_scene(folder / "scene.vrt")
    assert "\n" not in str(error.value)


def test_the_harmless_form_of_those_vrts_is_read(tmp_path):
    write(tmp_path / "inside.tif", rgb(64, 48))
    (tmp_path / "scene.vrt").write_text(vrt("inside.tif"))
    with imagery.open_scene(tmp_path / "scene.vrt") as scene:
        assert np.array_equal(rows(scene)[..., 0], rgb(64, 48)[0])


@pytest.mark.parametrize("kind", ["deep", "damaged", "gone"])
def test_a_vrt_that_is_not_read_has_no_other_files(kind, tmp_path):
    path = tmp_path / "scene.vrt"
    if kind != "gone":
        deep = "<SRS>" * 100_000 + "</SRS>" * 100_000
        path.write_text(f"<VRTDataset>{deep}</VRTDataset>" if kind == "deep" else "<VRTDataset")
    assert imagery.files_of(path) == [path]


def test_overviews_named_in_the_file_are_not_followed(tmp_path):
    path = write(tmp_path / "scene.tif", rgb(64, 48))
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(ns="OVERVIEWS", OVERVIEW_FILE="/vsicurl/http://127.0.0.1:9/a.tif")
    with pytest.raises(ValueError, match="names another file as its overview"):
        imagery.open_scene(path)


def test_side_files_must_be_tiff(tmp_path):
    path = write(tmp_path / "scene.tif", rgb(64, 48))
    (tmp_path / "scene.tif.ovr").write_text(vrt("/vsicurl/http://127.0.0.1:9/a.tif"))
    with pytest.raises(ValueError, match="ovr must be a TIFF"):
        imagery.open_scene(path)
    (tmp_path / "scene.tif.ovr").unlink()
    with rasterio.Env(TIFF_USE_OVR=True), rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2], rasterio.enums.Resampling.nearest)
    assert (tmp_path / "scene.tif.ovr").exists()
    with imagery.open_scene(path) as scene:
        assert np.array_equal(rows(scene, 2), rows(scene)[::2, ::2])


def test_side_files_of_metadata_are_not_followed(tmp_path):
    path = write(tmp_path / "scene.tif", np.full((3, 64, 64), 7, dtype=np.uint8))
    write(tmp_path / "other.tif", np.full((3, 32, 32), 9, dtype=np.uint8))
    (tmp_path / "scene.tif.aux.xml").write_text(
        '<PAMDataset><Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">'
        f"{tmp_path / 'other.tif'}</MDI></Metadata></PAMDataset>"
    )
    with imagery.open_scene(path) as scene:
        assert (rows(scene, 2) == 7).all()


def test_bad_rasters_are_refused_by_name(tmp_path):
    content = write(tmp_path / "whole.tif", rgb(300, 200), compress="deflate").read_bytes()
    (tmp_path / "truncated.tif").write_bytes(content[: len(content) // 2])
    (tmp_path / "header.tif").write_bytes(b"II*\0\x08\0\0\0")
    jp2 = write(tmp_path / "whole.jp2", rgb(300, 200), driver="JP2OpenJPEG").read_bytes()
    (tmp_path / "header.jp2").write_bytes(jp2[:200])
    write(tmp_path / "flat.tif", np.zeros((3, 1, 500), dtype=np.uint8))
    write(tmp_path / "complex.tif", np.zeros((3, 64, 64), dtype=np.complex64))
    profile = {"width": 200_000, "height": 200_000, "count": 3, "dtype": "uint8", "crs": UTM}
    options = {"sparse_ok": True, "tiled": True, "bigtiff": "yes"}
    with rasterio.open(tmp_path / "bomb.tif", "w", driver="GTiff", **profile, **options):
        pass
    for name, message in {
        "truncated.tif": "cannot be read",
        "header.tif": "cannot be read",
        "header.jp2": "cannot be read",
        "flat.tif": "500 x 1 pixels, each side must be 14",
        "complex.tif": "must have real samples",
        "bomb.tif": "40,000 megapixels, more than the limit of 17,180",
    }.items():
        with (
            pytest.raises(ValueError, match=message) as error,
            imagery.open_scene(tmp_path / name) as scene,
        ):
            rows(scene)
        assert name in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="more than the limit of 0"):
        imagery.open_scene(tmp_path / "whole.tif", max_pixels=300 * 200 - 1)


def test_a_damaged_raster_ends_in_one_line(tmp_path):
    content = write(tmp_path / "whole.tif", rgb(300, 200), compress="deflate", crs=None)
    damaged = tmp_path / "damaged.tif"
    damaged.write_bytes(content.read_bytes()[:60_000])
    command = [sys.executable, "-m", "geollava", "ask", str(damaged), "What?", "--bands", "1"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {damaged} cannot be read: ")
    assert result.stderr.count("\n") == 1, result.stderr


def test_blocks_that_do_not_fit_the_memory_are_refused(tmp_path):
    options = {"driver": "GTiff", "count": 1, "dtype": "uint8", "sparse_ok": True}
    for side, refused in ((16_000, False), (17_008, True)):
        path = tmp_path / f"{side}.tif"
        tiles = {"tiled": True, "blockxsize": side, "blockysize": side}
        with rasterio.open(path, "w", width=side, height=side, **tiles, **options):
            pass
        if refused:
            with pytest.raises(ValueError, match="stored in blocks of 17008 x 17008 pixels"):
                imagery.open_scene(path)
        else:
            imagery.open_scene(path).close()


def test_without_rasterio(tmp_path, monkeypatch):
    path = write(tmp_path / "scene.tif", rgb(64, 48))
    noise(64, 48).save(tmp_path / "plain.tif")
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(ImportError, match=r"pip install 'tokenprune-vlm\[geo\]'"):
        open_here(path)
    assert open_here(tmp_path / "plain.tif").size == (64, 48)
