"""A file or an image in memory -> a scene: which reader it gets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from geollava.imagery import picture, raster
from geollava.imagery.scene import PUBLISHED_MAX_PIXELS, Scene
from geollava.imagery.stretch import PERCENTILES

# Tags by which a TIFF says where it lies, or what GDAL should make of its samples.
GEO_TAGS = {33_550, 33_922, 34_264, 34_735, 42_112, 42_113}


def open_scene(
    path: str | os.PathLike[str],
    *,
    bands: Sequence[int] | None = None,
    percentiles: tuple[float, float] = PERCENTILES,
    max_pixels: int | None = None,
) -> Scene:
    """Opens an image file; its pixels are read later.

    JPEG, PNG, WebP and plain TIFF of 8 bits are Pillow's, which the published pipeline uses;
    GeoTIFF, COG, JPEG 2000, VRT and TIFF of any other kind are read by GDAL, window by window.

    Args:
        bands: three, counted from 1, for red, green and blue, or one for gray. None takes the
            file's own RGB, else its first three, else its first.
        percentiles: samples of more than 8 bits are stretched between these two.
        max_pixels: refuse larger images. None is half a gigapixel for pictures, which are decoded
            whole, and 17 gigapixels for rasters.

    Raises:
        ValueError: not an image, damaged, too large or small, no such band.
        ImportError: a raster, and rasterio is not installed.
    """
    path = picture.check_file(path)
    chosen = check_bands(bands)
    try:
        driver = raster.driver_of(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    options: dict[str, Any] = {"bands": chosen, "percentiles": percentiles}
    if max_pixels is not None:
        options["max_pixels"] = max_pixels
    if driver is None or (driver == "GTiff" and chosen is None and is_plain_tiff(path)):
        return picture.Picture(path, **options)
    return raster.Raster(path, driver, **options)


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
        return picture.read_image(image)
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


def is_plain_tiff(path: Path) -> bool:
    """Whether Pillow reads all there is in a TIFF: 8 bits, gray or color, no place on the Earth."""
    try:
        with picture.open_header(path) as header:
            return (
                header.mode in picture.CONVERTIBLE_MODES
                and not GEO_TAGS & set(header.tag_v2)
                and header.width * header.height <= PUBLISHED_MAX_PIXELS
            )
    except ValueError:
        return False
