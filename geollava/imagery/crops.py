"""A scene -> crops: resampled band by band, pixels equal to Pillow's resize of the whole image.

Beside the scene itself no more than a band of the resized image is in memory.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from geollava.imagery.canvas import Canvas
from geollava.imagery.resizer import Resizer, image_of
from geollava.imagery.scene import Scene

BAND_ROWS = 120  # of pixels at a time in each thread: some 10 MB on an 8K canvas

Item = TypeVar("Item")
Result = TypeVar("Result")


def crop_rows(
    scene: Scene,
    canvas: Canvas,
    resize: str = "pillow",
    out: Tensor | None = None,
) -> Iterator[Tensor]:
    """The scene fitted to a canvas, centered on black, cut into crops: one row of them at a time.

    As many rows as the scene has readers are made ahead, by other threads.

    Args:
        canvas: the one that was chosen for this scene.
        resize: "pillow" is the published pipeline to the bit; "fast" starts from a reduced form
            (an overview, a JPEG decoded at half size) wherever one holds as many pixels.
        out: [rows, cols, 3, crop_size, crop_size] uint8 to write the crops into.

    Yields:
        [cols, 3, crop_size, crop_size] uint8.
    """
    resizer = Resizer(scene, canvas.fitted_size, resize)
    left, top, right, bottom = canvas.image_box
    (rows, cols), crop_size, width = canvas.grid, canvas.crop_size, canvas.size[0]

    def row(index: int) -> Tensor:
        canvas_top = index * crop_size
        first, last = max(canvas_top, top), min(canvas_top + crop_size, bottom)
        shape = (cols, 3, crop_size, crop_size)
        crops = empty_crops(shape) if out is None else out[index]
        if (left, right, last - first) != (0, width, crop_size):
            crops.zero_()
        by_rows = crops.numpy().transpose(1, 2, 0, 3)  # [3, crop_size, cols, crop_size]
        for start in range(first, last, BAND_ROWS):
            stop = min(start + BAND_ROWS, last)
            band = resizer.rows(start - top, stop - top)
            if band.shape[2] < width:
                band = np.pad(band, ((0, 0), (0, 0), (left, width - right)))
            target = by_rows[:, start - canvas_top : stop - canvas_top]
            target[...] = band.reshape(target.shape)
        return crops

    return in_order(row, range(rows), min(scene.readers, os.cpu_count() or 1))


def all_crops(scene: Scene, canvas: Canvas, resize: str = "pillow") -> Tensor:
    """All of `crop_rows`, [C, 3, crop_size, crop_size] uint8, row by row."""
    crops = empty_crops((*canvas.grid, 3, canvas.crop_size, canvas.crop_size))
    for _ in crop_rows(scene, canvas, resize, out=crops):
        pass
    return crops.flatten(0, 1)


def empty_crops(shape: tuple[int, ...]) -> Tensor:
    """uint8 [shape] on the CPU, holding anything.

    Not of numpy, which asks for huge pages: a virtual machine may take ten times as long to give
    them as small ones.
    """
    return torch.empty(shape, dtype=torch.uint8, device="cpu")


def resized(scene: Scene, size: tuple[int, int], resize: str = "fast") -> Image.Image:
    """The whole scene at (width, height) `size`, as an RGB image."""
    return image_of(Resizer(scene, size, resize).rows(0, size[1]))


def cut_crops(pixels: np.ndarray, crop_size: int) -> Tensor:
    """[height, width, 3] uint8 -> [C, 3, crop_size, crop_size], row by row."""
    rows, cols = pixels.shape[0] // crop_size, pixels.shape[1] // crop_size
    tiles = pixels.reshape(rows, crop_size, cols, crop_size, 3).transpose(0, 2, 4, 1, 3)
    return torch.from_numpy(tiles.copy()).flatten(0, 1)


def normalize_crops(crops: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 [C, 3, h, w] -> float32, (value / 255 - mean) / std per channel."""
    options: dict[str, Any] = {"dtype": torch.float32, "device": crops.device}
    channel_mean = torch.tensor(mean, **options)[:, None, None]
    channel_std = torch.tensor(std, **options)[:, None, None]
    pixels = crops.to(torch.float32, copy=True)
    return pixels.div_(255).sub_(channel_mean).div_(channel_std)


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[Result]:
    """`map` over threads that are never more than `workers` results ahead of who takes them."""
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
