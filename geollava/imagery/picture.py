"""Plain pictures, decoded by Pillow: JPEG, PNG, WebP, and TIFF without a place on the Earth."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from geollava.imagery.scene import PUBLISHED_MAX_PIXELS, Scene, check_size
from geollava.imagery.stretch import PERCENTILES, Stretch

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF")
# 4 bytes a pixel: half a gigapixel is 2 GB decoded.
MAX_PIXELS = 512 * 1024 * 1024
CONVERTIBLE_MODES = (
    "RGB",
    "RGBA",
    "RGBX",
    "RGBa",
    "L",
    "LA",
    "La",
    "P",
    "PA",
    "1",
    "CMYK",
    "YCbCr",
)
# One channel of 16 bits, 32 bits or floating point.
DEEP_MODES = ("I;16", "I;16L", "I;16B", "I", "F")
JPEG_MAX_FACTOR = 8
# What makes an image upright, by EXIF's orientation; from 5 on width and height change places.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = 5
FROM_THE_END = (3, 4, 7, 8)  # the first row that is shown is the last row or column in the file

_pillow_limit = threading.Lock()


class Picture(Scene):
    """A picture that is decoded as a whole when its first rows are read.

    Never by windows: a JPEG is decoded from its start for every one of them. Decoded pixels stay as
    the file has them, and rows become RGB when they are read: two whole images at once would not
    fit where one does. Gray, palette, CMYK and YCbCr are converted and deeper gray is stretched to
    8 bits; an alpha channel is dropped, as the published pipeline does. Of several frames the first
    is taken.

    Args:
        source: a file, an RGB image, or a scene without a place on the Earth, to turn it.
        bands: three of its channels, 1 for red to 3 for blue, or one for gray; None is RGB.
        percentiles: of samples of more than 8 bits, become 0 and 255.
        max_pixels: refuse larger files.
        orientation: as EXIF counts them; rows are turned when they are read, never all at once.

    Raises:
        ValueError: not such an image; too large or too small; no such band.
    """

    def __init__(
        self,
        source: Path | Image.Image | Scene,
        *,
        bands: tuple[int, ...] | None = None,
        percentiles: tuple[float, float] = PERCENTILES,
        max_pixels: int = MAX_PIXELS,
        orientation: int = 1,
    ) -> None:
        if bands is not None and not all(1 <= band <= 3 for band in bands):
            raise ValueError(f"bands of a picture are 1 to 3, got {list(bands)}")
        self._source, self._bands, self._percentiles = source, bands, percentiles
        self._decoding = threading.Lock()
        self._decoded: tuple[int, Image.Image] | None = None  # (factor, pixels)
        self._stretch: Stretch | None = None
        self._orientation = orientation
        if isinstance(source, Image.Image):
            size = source.size
            self._decoded = 1, source
        elif isinstance(source, Scene):
            size, self.as_published = source.size, source.as_published
        else:
            with open_header(source) as header:
                check_size(source, header.size, max_pixels)
                check_mode(source, header)
                size, deep = header.size, header.mode in DEEP_MODES
                self.as_published = not deep and size[0] * size[1] <= PUBLISHED_MAX_PIXELS
                if header.format == "JPEG":
                    self.max_factor = JPEG_MAX_FACTOR
        self.size = size if orientation < SIDEWAYS else (size[1], size[0])

    def read_rows(self, top: int, bottom: int, factor: int) -> np.ndarray:
        return np.asarray(self.read_image(top, bottom, factor))

    def read_image(self, top: int, bottom: int, factor: int) -> Image.Image:
        rows = self._turned(self._pixels(factor), top, bottom)
        if self._stretch is not None:
            rows = Image.fromarray(self._stretch(np.asarray(rows)[None])[0])
        if rows.mode != "RGB":
            rows = rows.convert("RGB")
        if self._bands is None:
            return rows
        channels = [rows.getchannel(band - 1) for band in self._bands]
        return Image.merge("RGB", channels * (3 // len(channels)))

    def check(self) -> Iterator[None]:
        self._pixels(1)
        yield

    def close(self) -> None:
        self._decoded = None
        if isinstance(self._source, Scene):
            self._source.close()

    def _turned(self, whole: Image.Image, top: int, bottom: int) -> Image.Image:
        """Rows of the picture as it is shown."""
        sideways = self._orientation >= SIDEWAYS
        if self._orientation in FROM_THE_END:
            length = whole.width if sideways else whole.height
            top, bottom = length - bottom, length - top
        box = (top, 0, bottom, whole.height) if sideways else (0, top, whole.width, bottom)
        turn, rows = TURNS.get(self._orientation), whole.crop(box)
        return rows if turn is None else rows.transpose(turn)

    def _pixels(self, factor: int) -> Image.Image:
        with self._decoding:
            if self._decoded is None or self._decoded[0] != factor:
                self._decoded = None  # before the next, not beside it
                image = self._decode(factor)
                if image.mode in DEEP_MODES:
                    self._stretch = stretch_of(image, self._percentiles)
                self._decoded = factor, image
            return self._decoded[1]

    def _decode(self, factor: int) -> Image.Image:
        assert not isinstance(self._source, Image.Image)  # which is decoded
        if isinstance(self._source, Scene):
            return self._source.read_whole()
        return decode(self._source, factor)


def check_file(path: str | os.PathLike[str]) -> Path:
    """Raises ValueError unless the path is a file of this machine with something to read in it."""
    given = str(path)  # a Path would take one slash of a URL away
    scheme, colon, _ = given.partition(":/")
    if given.startswith("/vsi") or (colon and scheme.replace("+", "").isalnum()):
        raise ValueError(f"{given} must be a file on this machine, network paths are not read")
    path = Path(path)
    try:
        size = path.stat().st_size if path.is_file() else None
        exists = size is not None or path.exists()
    except OSError as error:  # a name that is too long, for one
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    if not exists:
        raise ValueError(f"{path} does not exist")
    if size is None:
        raise ValueError(f"{path} must be an image file, it is not a file")
    if size == 0:
        raise ValueError(f"{path} must be an image file, it is empty (0 bytes)")
    try:
        path.open("rb").close()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    return path


def open_header(path: Path) -> Image.Image:
    # Pillow's own guard against bombs has one limit for all images; ours is checked right after.
    with _pillow_limit, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an error says it better
        previous, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(path, formats=FORMATS)
        except UnidentifiedImageError as error:
            expected = ", ".join(FORMATS)
            raise ValueError(f"{path} must be an image ({expected}), it is not") from error
        except Exception as error:  # of any kind, where a damaged file misleads Pillow
            raise ValueError(f"{path} cannot be read: {reason_of(error)}") from error
        finally:
            Image.MAX_IMAGE_PIXELS = previous


def check_mode(path: Path, header: Image.Image) -> None:
    if header.mode not in CONVERTIBLE_MODES + DEEP_MODES:
        raise ValueError(
            f"{path} has samples of Pillow mode {header.mode}; gray, RGB, palette or CMYK is "
            "expected"
        )


def decode(path: Path, factor: int) -> Image.Image:
    """The picture as it is; a JPEG may be decoded at a power of two of its size, much faster."""
    with open_header(path) as image:
        try:
            if factor > 1:
                image.draft(image.mode, (image.width // factor, image.height // factor))
            image.load()
        except Exception as error:  # as above
            raise ValueError(f"{path} cannot be decoded: {reason_of(error)}") from error
        return image


def reason_of(error: Exception) -> str:
    """An error of a library in one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def stretch_of(image: Image.Image, percentiles: tuple[float, float]) -> Stretch:
    """How gray of more than 8 bits becomes gray of 8, from rows and columns at even distances."""
    step = 1 + max(image.size) // 1024
    rows = [
        np.asarray(image.crop((0, top, image.width, top + 1)))[:, ::step]
        for top in range(0, image.height, step)
    ]
    some = np.concatenate(rows)[None]
    return Stretch.between_percentiles(some, np.ones(some.shape[1:], dtype=bool), percentiles)
