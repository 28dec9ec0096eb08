"""A file -> the scene that reads it, in this process: which reader it gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from geollava.imagery import picture, raster
from geollava.imagery.orientation import ORIENTATION, orientation_of
from geollava.imagery.scene import PUBLISHED_MAX_PIXELS, Scene
from geollava.imagery.stretch import PERCENTILES

# Tags by which a TIFF says where it lies, or what GDAL should make of its samples.
GEO_TAGS = {33_550, 33_922, 34_264, 34_735, 42_112, 42_113}
BITS_PER_SAMPLE = 258
# A PNG's bits per sample and color type stand at these places; gray of 16 bits is Pillow's.
PNG_BITS, PNG_COLOR, PNG_GRAY = 24, 25, 0


def open_here(
    path: Path,
    *,
    bands: tuple[int, ...] | None = None,
    percentiles: tuple[float, float] = PERCENTILES,
    max_pixels: int | None = None,
    exif: str = "stored",
) -> Scene:
    """As `open_scene`, but a decoder that crashes takes this process with it."""
    driver = raster.driver_of(path)
    turn = orientation_of(path, driver) if exif == "applied" else 1
    options: dict[str, Any] = {"bands": bands, "percentiles": percentiles}
    if max_pixels is not None:
        options["max_pixels"] = max_pixels
    deep_png = driver is None and is_deep_png(path)
    if not deep_png and (driver is None or (bands is None and is_plain_tiff(path, driver))):
        return picture.Picture(path, orientation=turn, **options)
    if deep_png or turn != 1:  # read as a whole
        options.setdefault("max_pixels", picture.MAX_PIXELS)
    scene = raster.Raster(path, driver or "PNG", **options)
    if turn == 1:
        return scene
    if scene.georeference is not None:
        scene.close()
        raise NotImplementedError(
            f"{path} must have orientation 1 to be turned as it says, since it has a place on the "
            f"Earth, got {turn}: read it as stored"
        )
    return picture.Picture(scene, orientation=turn)


def is_plain_tiff(path: Path, driver: str) -> bool:
    """Whether Pillow reads just what is in a TIFF: 8 bits, gray or color, no place on the Earth."""
    if driver != "GTiff":
        return False
    try:
        with picture.open_header(path) as header:
            return (
                header.mode in picture.CONVERTIBLE_MODES
                and max(header.tag_v2.get(BITS_PER_SAMPLE, (1,))) <= 8
                and header.tag_v2.get(ORIENTATION) not in picture.TURNS  # Pillow would turn it
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
