"""A file -> the scene that reads it, in this process: which reader it gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from geollava.imagery import picture, raster
from geollava.imagery.scene import PUBLISHED_MAX_PIXELS, Scene
from geollava.imagery.stretch import PERCENTILES

# Tags by which a TIFF says where it lies, or what GDAL should make of its samples.
GEO_TAGS = {33_550, 33_922, 34_264, 34_735, 42_112, 42_113}
BITS_PER_SAMPLE, ORIENTATION = 258, 274
# A PNG's bits per sample and color type stand at these places; gray of 16 bits is Pillow's.
PNG_BITS, PNG_COLOR, PNG_GRAY = 24, 25, 0


def open_here(
    path: Path,
    *,
    bands: tuple[int, ...] | None = None,
    percentiles: tuple[float, float] = PERCENTILES,
    max_pixels: int | None = None,
) -> Scene:
    """As `open_scene`, but a decoder that crashes takes this process with it."""
    driver = raster.driver_of(path)
    options: dict[str, Any] = {"bands": bands, "percentiles": percentiles}
    if max_pixels is not None:
        options["max_pixels"] = max_pixels
    if driver is None and is_deep_png(path):
        options.setdefault("max_pixels", picture.MAX_PIXELS)
        return raster.Raster(path, "PNG", **options)
    if driver is None or (driver == "GTiff" and bands is None and is_plain_tiff(path)):
        return picture.Picture(path, **options)
    return raster.Raster(path, driver, **options)


def is_plain_tiff(path: Path) -> bool:
    """Whether Pillow reads just what is in a TIFF: 8 bits, gray or color, no place on the Earth."""
    try:
        with picture.open_header(path) as header:
            return (
                header.mode in picture.CONVERTIBLE_MODES
                and max(header.tag_v2.get(BITS_PER_SAMPLE, (1,))) <= 8
                and header.tag_v2.get(ORIENTATION, 1) == 1  # Pillow turns the image, GDAL does not
                and not GEO_TAGS & set(header.tag_v2)
                and header.width * header.height <= PUBLISHED_MAX_PIXELS
            )
    except (ValueError, TypeError):
        return False


def is_deep_png(path: Path) -> bool:
    """Whether a PNG holds 16 bits a sample where Pillow keeps 8: RGB, or anything with alpha."""
    with path.open("rb") as file:
        start = file.read(PNG_COLOR + 1)
    return (
        start.startswith(b"\x89PNG")
        and len(start) > PNG_COLOR
        and start[PNG_BITS] == 16
        and start[PNG_COLOR] != PNG_GRAY
    )
