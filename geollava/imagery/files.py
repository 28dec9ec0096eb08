"""A file or an image in memory -> a scene."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from geollava.imagery import picture
from geollava.imagery.isolated import IsolatedScene
from geollava.imagery.orientation import EXIF_MODES
from geollava.imagery.scene import Scene
from geollava.imagery.stretch import PERCENTILES


def open_scene(
    path: str | os.PathLike[str],
    *,
    bands: Sequence[int] | None = None,
    percentiles: tuple[float, float] = PERCENTILES,
    max_pixels: int | None = None,
    exif: str = "stored",
) -> Scene:
    """Opens an image file; its pixels are read later.

    JPEG, PNG, WebP and plain TIFF of 8 bits are Pillow's, which the published pipeline uses;
    GeoTIFF, COG, JPEG 2000, VRT, TIFF of any other kind and color PNG of 16 bits are read by GDAL,
    window by window. All of it happens in a process of its own.

    Args:
        bands: three, counted from 1, for red, green and blue, or one for gray. None takes the
            file's own RGB, else its first three, else its first.
        percentiles: samples of more than 8 bits are stretched between these two.
        max_pixels: refuse larger images. None is half a gigapixel for pictures, which are decoded
            whole, and 17 gigapixels for rasters.
        exif: "stored" gives the pixels as they are stored, as the published pipeline does;
            "applied" turns the image as EXIF's orientation says, or TIFF's tag.

    Raises:
        ValueError: not an image, damaged, too large or small, no such band; its decoder crashes,
            takes too long or too much memory.
        NotImplementedError: a raster with a place on the Earth is to be turned.
        ImportError: a raster, and rasterio is not installed.
    """
    file, chosen = picture.check_file(path), check_bands(bands)
    if exif not in EXIF_MODES:
        raise ValueError(f"exif must be one of {', '.join(EXIF_MODES)}, got {exif}")
    return IsolatedScene(
        file, bands=chosen, percentiles=percentiles, max_pixels=max_pixels, exif=exif
    )


def read_image(path: str | os.PathLike[str], *, max_pixels: int | None = None) -> Image.Image:
    """As `open_scene`, but decoded whole, to an RGB image.

    While it is made the decoder's process holds the picture too: twice its memory, 4 bytes per
    pixel each time, where a scene's rows take it once.
    """
    with open_scene(path, max_pixels=max_pixels) as scene:
        return scene.read_whole()


def as_scene(image: Any) -> Scene:
    """A scene of a Pillow image, a path, or a uint8 array [H, W, 3] or tensor [3, H, W].

    Raises:
        TypeError: anything else.
        ValueError: an array of another shape; a file that `open_scene` refuses.
    """
    if isinstance(image, Scene):
        return image
    if isinstance(image, (str, os.PathLike)):
        return open_scene(image)
    return picture.Picture(to_rgb(image))


def to_rgb(image: Any) -> Image.Image:
    """As `as_scene`, but whole, as an RGB Pillow image."""
    if isinstance(image, Image.Image):
        image.load()  # here, not in several threads at once
        return image if image.mode == "RGB" else image.convert("RGB")
    if isinstance(image, (str, os.PathLike)):
        return read_image(image)
    if isinstance(image, Tensor):
        image = image.permute(1, 2, 0).cpu().numpy() if image.ndim == 3 else image.cpu().numpy()
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8:
            raise TypeError(f"an image array must be uint8, got {image.dtype}")
        if image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"an image array must be [H, W, 3], got {list(image.shape)}")
        return Image.fromarray(np.ascontiguousarray(image))
    raise TypeError(
        f"an image must be a Pillow image, a path, an array or a tensor, got {type(image).__name__}"
    )


def check_bands(bands: Sequence[int] | None) -> tuple[int, ...] | None:
    if bands is None:
        return None
    if len(bands) not in (1, 3) or any(band < 1 for band in bands):
        raise ValueError(
            f"bands must be one or three numbers from 1, got {', '.join(map(str, bands))}"
        )
    return tuple(bands)
