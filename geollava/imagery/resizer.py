"""A scene resized, any of its rows at a time, so that nobody needs it whole."""

from __future__ import annotations

import math
import sys
import threading
from functools import cache
from types import ModuleType

import numpy as np
from PIL import Image

from geollava.imagery import resample
from geollava.imagery.resample import ROWS
from geollava.imagery.scene import Scene

BLOCK_BYTES = 16 * 1024 * 1024  # at most, of rows that go through the pass within rows at a time
# Pixels of a resized image from which on numba's half a second of loading pays.
COMPILED_PIXELS: float = 4096 * 4096


class Resizer:
    """Rows of a scene resized to (width, height) `size`, equal to Pillow's resize of the whole.

    Args:
        resize: see `geollava.imagery.crop_rows`.
    """

    def __init__(self, scene: Scene, size: tuple[int, int], resize: str) -> None:
        self.scene, self.size = scene, size
        self.factor = scene.factor(size, resize)
        self.source_size = tuple(math.ceil(side / self.factor) for side in scene.size)
        large = size[0] * size[1] >= COMPILED_PIXELS
        self.passes = fastest_passes() if large else resample
        self.buffers = Buffers()

    def rows(self, top: int, bottom: int) -> np.ndarray:
        """[3, bottom - top, width] uint8, a plane per color, until the thread's next call."""
        width, height = self.size
        source_width, source_height = self.source_size
        if source_height == height:
            return self.source_rows(top, bottom, width)
        first, weights = resample.bicubic_weights(source_height, height, top, bottom)
        start = int(first[0])
        stop = min(int(first[-1]) + weights.shape[1], source_height)
        taller, wider = source_height - height, source_width - width
        shortens_first = taller > max(0, 2 * wider) and resample.pillow_shortens_first()
        planes = self.source_rows(start, stop, source_width if shortens_first else width)
        resized = self.buffers.array("resized", (3, bottom - top, planes.shape[2]))
        for plane, out in zip(planes, resized, strict=True):
            self.passes.across_rows(plane, first - start, weights, out)
        if shortens_first:
            image, resized = image_of(resized), np.empty((3, bottom - top, width), dtype=np.uint8)
            self.passes.within_rows(image, width, resized)
        return resized

    def source_rows(self, start: int, stop: int, width: int) -> np.ndarray:
        """Rows of the source, a block at a time through the pass within rows."""
        planes = self.buffers.array("source", (3, stop - start, width))
        block = max(1, min(ROWS, BLOCK_BYTES // (3 * self.source_size[0])))
        # Each kind of pass gets what it works on: an image made of an array is a copy, and back.
        read = self.scene.read_image if self.passes is resample else self.scene.read_rows
        for top in range(start, stop, block):
            bottom = min(top + block, stop)
            rows = read(top, bottom, self.factor)
            self.passes.within_rows(rows, width, planes, top - start)
        return planes


class Buffers(threading.local):
    """Memory of each thread that is used again: fresh pages cost as much as the arithmetic."""

    def __init__(self) -> None:
        self.flat: dict[str, np.ndarray] = {}

    def array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """uint8 [shape], holding anything."""
        size = math.prod(shape)
        if name not in self.flat or len(self.flat[name]) < size:
            self.flat[name] = np.empty(size, dtype=np.uint8)
        return self.flat[name][:size].reshape(shape)


@cache
def fastest_passes() -> ModuleType:
    """`resample_compiled`, else `resample`: without numba, where numba is told not to compile,
    where it has nowhere to keep what it compiles, and where words begin with their last byte."""
    if sys.byteorder != "little":
        return resample
    try:
        from numba import config

        if getattr(config, "DISABLE_JIT", False):
            return resample
        from geollava.imagery import resample_compiled
    except (ImportError, RuntimeError, OSError):
        return resample
    return resample_compiled


def image_of(planes: np.ndarray) -> Image.Image:
    """[3, height, width] uint8 -> an RGB image."""
    return Image.merge("RGB", [Image.fromarray(plane) for plane in planes])
