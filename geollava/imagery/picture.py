"""Plain pictures, decoded by Pillow: JPEG, PNG, WebP, and TIFF without a place on the Earth."""

from __future__ import annotations

import os
import threading
import warnings
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
DEEP_ROWS = 512  # stretched at a time

_pillow_limit = threading.Lock()


class Picture(Scene):
    """A picture that is decoded as a whole when its first rows are read.

    Never by windows: a JPEG is decoded from its start for every one of them.

    Args:
        source: a file, or an RGB image.
        bands: three of its channels, 1 for red to 3 for blue, or one for gray; None is RGB.
        percentiles: of samples of more than 8 bits, become 0 and 255.
        max_pixels: refuse larger files.

    Raises:
        ValueError: not such an image; too large or too small; no such band.
    """

    def __init__(
        self,
        source: Path | Image.Image,
        *,
        bands: tuple[int, ...] | None = None,
        percentiles: tuple[float, float] = PERCENTILES,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if bands is not None and not all(1 <= band <= 3 for band in bands):
            raise ValueError(f"bands of a picture are 1 to 3, got {list(bands)}")
        self._source, self._bands, self._percentiles = source, bands, percentiles
        self._decoding = threading.Lock()
        self._decoded: tuple[int, Image.Image] | None = None  # (factor, pixels)
        if isinstance(source, Image.Image):
            self.size = source.size
            self._decoded = 1, source
            return
        with open_header(source) as header:
            check_size(source, header.size, max_pixels)
            check_mode(source, header)
            self.size = header.size
            deep = header.mode in DEEP_MODES
            self.as_published = not deep and header.width * header.height <= PUBLISHED_MAX_PIXELS
            if header.format == "JPEG":
                self.max_factor = JPEG_MAX_FACTOR

    def read_rows(self, top: int, bottom: int, factor: int) -> np.ndarray:
        return np.asarray(self.read_image(top, bottom, factor))

    def read_image(self, top: int, bottom: int, factor: int) -> Image.Image:
        whole = self._pixels(factor)
        rows = whole.crop((0, top, whole.width, bottom))
        if self._bands is None:
            return rows
        channels = [rows.getchannel(band - 1) for band in self._bands]
        return Image.merge("RGB", channels * (3 // len(channels)))

    def close(self) -> None:
        self._decoded = None

    def _pixels(self, factor: int) -> Image.Image:
        with self._decoding:
            if self._decoded is None or self._decoded[0] != factor:
                assert isinstance(self._source, Path)
                self._decoded = factor, decode(self._source, factor, self._percentiles)
            return self._decoded[1]


def read_image(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes a JPEG, PNG, WebP or TIFF file to RGB, whole.

    Gray, palette, CMYK and YCbCr images are converted, deeper gray is stretched to 8 bits; an alpha
    channel is dropped, as the published pipeline does, and EXIF orientation is not applied. Of
    several frames the first is taken.

    Args:
        path: the file.
        max_pixels: refuse images larger than this before any pixel is decoded.

    Raises:
        ValueError: not such an image; too large or too small; truncated.
    """
    path = check_file(path)
    with open_header(path) as header:
        check_size(path, header.size, max_pixels)
        check_mode(path, header)
    return decode(path, 1, PERCENTILES)


def check_file(path: str | os.PathLike[str]) -> Path:
    """Raises ValueError unless the path is a file with something in it, on this machine."""
    path = Path(path)
    scheme, colon, _ = str(path).partition(":/")
    if str(path).startswith("/vsi") or (colon and scheme.replace("+", "").isalnum()):
        raise ValueError(f"{path} must be a file on this machine, network paths are not read")
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    if not path.is_file():
        raise ValueError(f"{path} must be an image file, it is not a file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} must be an image file, it is empty (0 bytes)")
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
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
        finally:
            Image.MAX_IMAGE_PIXELS = previous


def check_mode(path: Path, header: Image.Image) -> None:
    if header.mode not in CONVERTIBLE_MODES + DEEP_MODES:
        raise ValueError(
            f"{path} has samples of Pillow mode {header.mode}; gray, RGB, palette or CMYK is "
            "expected"
        )


def decode(path: Path, factor: int, percentiles: tuple[float, float]) -> Image.Image:
    """The picture in RGB; a JPEG may be decoded at a power of two of its size, much faster."""
    with open_header(path) as image:
        try:
            if factor > 1:
                image.draft(image.mode, (image.width // factor, image.height // factor))
            image.load()
        except (OSError, SyntaxError, EOFError, MemoryError) as error:
            raise ValueError(f"{path} cannot be decoded: {error}") from error
        if image.mode in DEEP_MODES:
            return stretched(image, percentiles).convert("RGB")
        return image if image.mode == "RGB" else image.convert("RGB")


def stretched(image: Image.Image, percentiles: tuple[float, float]) -> Image.Image:
    """Gray of more than 8 bits -> gray of 8."""
    samples = np.asarray(image)[None]  # [1, H, W]
    step = 1 + max(image.size) // 1024
    some = samples[:, ::step, ::step]
    stretch = Stretch.between_percentiles(some, np.ones(some.shape, dtype=bool), percentiles)
    rows = [
        stretch(samples[:, top : top + DEEP_ROWS])[0] for top in range(0, image.height, DEEP_ROWS)
    ]
    return Image.fromarray(np.concatenate(rows))
