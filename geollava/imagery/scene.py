"""A scene: one image, open, whose rows are read when they are needed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from PIL import Image

from geollava.common.choices import ResizeMode

MIN_SIDE = 14  # one patch
# A resampling filter takes 32 bytes per pixel of a side.
MAX_SIDE = 1_000_000
# Pillow, and with it the published pipeline, refuses to decode more than this many pixels.
PUBLISHED_MAX_PIXELS = 178_956_970
CHECK_PIXELS = 4 * 1024 * 1024  # decoded at a time where only damage is looked for
RESIZE_MODES = get_args(ResizeMode)


@dataclass(frozen=True)
class Georeference:
    """Where on the Earth a scene lies.

    Attributes:
        crs: its coordinate reference system as WKT.
        transform: (a, b, c, d, e, f): a pixel's corner (column, row) lies at
            x = a * column + b * row + c, y = d * column + e * row + f.
    """

    crs: str
    transform: tuple[float, float, float, float, float, float]


class Scene(ABC):
    """Rows of 8-bit RGB, at full size or reduced by a power of two.

    Attributes:
        size: (width, height) in pixels.
        georeference: None where the file has none.
        as_published: samples of 8 bits and not more pixels than the published pipeline decodes, so
            that its crops are defined for this scene.
        max_factor: the largest power of two that `read_rows` can reduce by.
        readers: threads that may read distant rows at the same time and still be fast.
    """

    size: tuple[int, int]
    georeference: Georeference | None = None
    as_published: bool = True
    max_factor: int = 1
    readers: int = 4

    @abstractmethod
    def read_rows(self, top: int, bottom: int, factor: int) -> np.ndarray:
        """[bottom - top, ceil(width / factor), 3] uint8, rows of the scene reduced by `factor`.

        May be called from several threads.

        Raises:
            ValueError: the file is damaged there.
        """

    def read_image(self, top: int, bottom: int, factor: int) -> Image.Image:
        """The same rows as a Pillow image."""
        return Image.fromarray(self.read_rows(top, bottom, factor))

    def read_whole(self) -> Image.Image:
        """All rows, as an RGB image."""
        image, (width, height) = Image.new("RGB", self.size), self.size
        rows = max(1, CHECK_PIXELS // width)
        for top in range(0, height, rows):
            image.paste(self.read_image(top, min(top + rows, height), 1), (0, top))
        return image

    def check(self) -> Iterator[None]:
        """Decodes every pixel, a part at a time, which finds files that are damaged further on.

        Raises:
            ValueError: the file is.
        """
        width, height = self.size
        rows = max(1, CHECK_PIXELS // width)
        for top in range(0, height, rows):
            self.read_rows(top, min(top + rows, height), 1)
            yield

    def close(self) -> None:  # noqa: B027 not every scene has something to let go of
        """Lets go of the file and the pixels."""

    def factor(self, size: tuple[int, int], resize: str) -> int:
        """What to reduce by before resampling to (width, height) `size`; 1 is the full image.

        With `resize="pillow"` a scene that the published pipeline can decode is never reduced:
        its pixels are to be equal. Otherwise any reduced form that is not smaller than `size` does.
        """
        if resize not in RESIZE_MODES:
            raise ValueError(f"resize must be one of {', '.join(RESIZE_MODES)}, got {resize!r}")
        if resize == "pillow" and self.as_published:
            return 1
        ratio = min(self.size[0] // size[0], self.size[1] // size[1], self.max_factor)
        return 1 << (max(ratio, 1).bit_length() - 1)

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def check_size(path: Path, size: tuple[int, int], max_pixels: int) -> None:
    """Raises ValueError for an image too large to read or too small to hold a patch."""
    width, height = size
    if width * height > max_pixels:
        raise ValueError(
            f"{path} is {width} x {height} = {width * height / 1e6:,.0f} megapixels, "
            f"more than the limit of {max_pixels / 1e6:,.0f}"
        )
    if not MIN_SIDE <= min(size) <= max(size) <= MAX_SIDE:
        raise ValueError(
            f"{path} is {width} x {height} pixels, each side must be {MIN_SIDE} (a patch) to "
            f"{MAX_SIDE:,}"
        )
