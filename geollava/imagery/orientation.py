"""Which way a file says its image is to be turned: by EXIF, or by TIFF's tag."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, get_args

from PIL import Image

from geollava.common.choices import ExifMode
from geollava.imagery.picture import TURNS, open_header, reason_of

EXIF_MODES = get_args(ExifMode)
ORIENTATION = 274
TIFF_INTEGERS = {1: "B", 3: "H", 4: "I"}  # by the number of the type


def orientation_of(path: Path, driver: str | None) -> int:
    """1 to 8, as EXIF counts them; 1 where the file says nothing or what is no orientation.

    Args:
        driver: of GDAL, for a raster. JPEG 2000 and VRT know no orientation.

    Raises:
        ValueError: not an image, or its EXIF data are damaged.
    """
    if driver == "GTiff":
        value: Any = tiff_orientation(path)
    elif driver is not None:
        return 1
    else:
        with open_header(path) as header:
            try:
                value = exif_orientation(path, header)
            except Exception as error:  # of any kind, where damaged data mislead Pillow
                raise ValueError(f"{path} has damaged EXIF data: {reason_of(error)}") from error
    return int(value) if value in TURNS else 1


def exif_orientation(path: Path, header: Image.Image) -> Any:
    exif = Image.Image.getexif(header)  # that of PNG decodes the whole picture for it
    if header.format == "PNG" and ORIENTATION not in exif and (late := png_exif(path)):
        exif.load(late)
    return exif.get(ORIENTATION)


def png_exif(path: Path) -> bytes | None:
    """The EXIF data of a PNG, which may stand behind its pixels."""
    with path.open("rb") as file:
        file.seek(8)
        while len(start := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", start)
            if kind == b"eXIf":
                return file.read(length)
            file.seek(length + 4, 1)
    return None


def tiff_orientation(path: Path) -> int | None:
    """The tag of a TIFF's first image, whatever its samples, also where Pillow cannot read them."""
    with path.open("rb") as file:
        start = file.read(16)
        order, big = "<" if start[:2] == b"II" else ">", 43 in start[2:4]
        (offset,) = struct.unpack_from(f"{order}{'Q' if big else 'I'}", start, 8 if big else 4)
        file.seek(offset)
        (count,) = struct.unpack(f"{order}{'Q' if big else 'H'}", file.read(8 if big else 2))
        length, place = (20, 12) if big else (12, 8)  # of a tag; where its value is in it
        tags = file.read(min(count, 2**16) * length)
    for begin in range(0, len(tags) - length + 1, length):
        tag, kind = struct.unpack_from(f"{order}HH", tags, begin)
        if tag == ORIENTATION and kind in TIFF_INTEGERS:
            return int(struct.unpack_from(order + TIFF_INTEGERS[kind], tags, begin + place)[0])
    return None
