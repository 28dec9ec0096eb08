"""A scene -> crops: resampled band by band, pixels equal to Pillow's resize of the whole image.

Pillow resizes in two passes, one within rows and one across them, each with 22-bit weights and
rounded to 8 bits. The pass within rows is Pillow's own; the one across them, which Pillow cannot do
for a part of the image without moving its samples, is repeated here in the same arithmetic. So no
more than a band of the image is needed at a time.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from geollava.imagery.canvas import fitted_size, image_box
from geollava.imagery.scene import Scene

BICUBIC = Image.Resampling.BICUBIC
WEIGHT_BITS = 22  # of Pillow's fixed-point weights for 8-bit channels
BLOCK_BYTES = 4 * 1024 * 1024  # of rows that pass the first pass at a time
# Rows and samples of the pass across rows: small enough for the cache, and so large that threads do
# not spend their time waiting for the interpreter between two calls.
TILE = 16, 8192
MAX_WORKERS = 4  # bands at a time; each takes some 30 MB on an 8K canvas

Item = TypeVar("Item")
Result = TypeVar("Result")


def crop_rows(
    scene: Scene, canvas: tuple[int, int], crop_size: int, resize: str = "pillow"
) -> Iterator[Tensor]:
    """The scene fitted to a canvas, centered on black, cut into crops: one row of them at a time.

    A few rows are made ahead by other threads.

    Args:
        canvas: (width, height) in pixels, multiples of `crop_size`.
        resize: "pillow" is the published pipeline to the bit; "fast" starts from a reduced form
            (an overview, a JPEG decoded at half size) wherever one holds as many pixels.

    Yields:
        [canvas width / crop_size, 3, crop_size, crop_size] uint8.
    """
    size = fitted_size(scene.size, canvas)
    left, top, _, bottom = image_box(scene.size, canvas)
    factor = scene.factor(size, resize)

    def row(canvas_top: int) -> Tensor:
        first, last = max(canvas_top, top), min(canvas_top + crop_size, bottom)
        if first >= last:
            return cut_crops(np.zeros((crop_size, canvas[0], 3), dtype=np.uint8), crop_size)
        rows = resized_rows(scene, size, first - top, last - top, factor)
        above, right = first - canvas_top, canvas[0] - left - size[0]
        border = (above, crop_size - above - len(rows)), (left, right), (0, 0)
        return cut_crops(np.pad(rows, border) if np.any(border) else rows, crop_size)

    return in_order(row, range(0, canvas[1], crop_size), min(MAX_WORKERS, os.cpu_count() or 1))


def resized(scene: Scene, size: tuple[int, int], resize: str = "fast") -> Image.Image:
    """The whole scene at (width, height) `size`, as an RGB image."""
    return Image.fromarray(resized_rows(scene, size, 0, size[1], scene.factor(size, resize)))


def cut_crops(pixels: np.ndarray, crop_size: int) -> Tensor:
    """[height, width, 3] uint8 -> [C, 3, crop_size, crop_size], row by row."""
    rows, cols = pixels.shape[0] // crop_size, pixels.shape[1] // crop_size
    tiles = pixels.reshape(rows, crop_size, cols, crop_size, 3).transpose(0, 2, 4, 1, 3)
    return torch.from_numpy(tiles.copy()).flatten(0, 1)


def normalize_crops(crops: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 [C, 3, h, w] -> float32, (value / 255 - mean) / std per channel."""
    channel_mean = torch.tensor(mean, device=crops.device)[:, None, None]
    channel_std = torch.tensor(std, device=crops.device)[:, None, None]
    return (crops.float() / 255 - channel_mean) / channel_std


def resized_rows(
    scene: Scene, size: tuple[int, int], top: int, bottom: int, factor: int
) -> np.ndarray:
    """[bottom - top, width, 3] uint8: rows of the scene resized to (width, height) `size`."""
    width, height = size
    source_width, source_height = (math.ceil(side / factor) for side in scene.size)
    first, weights = bicubic_weights(source_height, height, top, bottom)
    source_top = int(first[0])
    source_bottom = min(int(first[-1]) + weights.shape[1], source_height)

    def across(rows: np.ndarray) -> np.ndarray:
        if source_height == height:
            return rows[top - source_top : bottom - source_top]
        return weighted_rows(rows, first - source_top, weights)

    def within(rows: Image.Image) -> np.ndarray:
        if source_width == width:
            return np.asarray(rows)
        return np.asarray(rows.resize((width, rows.height), BICUBIC))

    taller, wider = source_height - height, source_width - width
    if taller > max(0, 2 * wider) and pillow_shortens_first():
        rows = scene.read_rows(source_top, source_bottom, factor)
        return within(Image.fromarray(across(rows)))
    step = max(1, BLOCK_BYTES // (3 * source_width))
    blocks = [
        within(scene.read_image(block_top, min(block_top + step, source_bottom), factor))
        for block_top in range(source_top, source_bottom, step)
    ]
    return across(np.concatenate(blocks) if len(blocks) > 1 else blocks[0])


@cache
def pillow_shortens_first() -> bool:
    """Whether Pillow starts with the pass across rows where an image loses far more rows than
    columns, as it does from version 13 on. Rounding between the passes makes them differ."""
    image = Image.frombytes("L", (8, 64), bytes(37 * i * i % 251 for i in range(8 * 64)))
    shortened = image.resize((8, 20), BICUBIC).resize((6, 20), BICUBIC)
    return image.resize((6, 20), BICUBIC).tobytes() == shortened.tobytes()


def bicubic_weights(
    in_size: int, out_size: int, start: int, stop: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pillow's antialiased bicubic filter along one side, for outputs `start` to `stop`.

    Returns:
        (first, weights): [n] int64, the first input of each output, and [n, taps] int32 fixed-point
        weights of the inputs from there on.
    """
    scale = in_size / out_size
    filter_scale = max(scale, 1.0)
    support = 2.0 * filter_scale
    centers = (np.arange(start, stop) + 0.5) * scale
    # As in C, a conversion to an integer drops the fraction.
    first = np.maximum((centers - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centers + support + 0.5).astype(np.int64), in_size)
    taps = np.arange(int((last - first).max()))
    inputs = taps + first[:, None]
    distance = np.abs((inputs - centers[:, None] + 0.5) * (1.0 / filter_scale))
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * -0.5
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    weights[inputs >= last[:, None]] = 0
    weights /= np.cumsum(weights, axis=1)[:, -1:]  # summed from left to right, as in C
    fixed = weights * (1 << WEIGHT_BITS)
    return first, np.trunc(fixed + np.copysign(0.5, fixed)).astype(np.int32)


def weighted_rows(rows: np.ndarray, first: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[H, W, 3] uint8 -> [n, W, 3] uint8: output i is the weighted sum of rows from first[i] on."""
    flat = rows.reshape(len(rows), -1)
    output = np.empty((len(first), flat.shape[1]), dtype=np.uint8)
    steps = np.diff(first)
    start = 0
    while start < len(first):
        # Outputs at even distances, whose inputs are a slice.
        step = max(int(steps[start]), 1) if start < len(steps) else 1
        stop = start + 1
        while stop < min(start + TILE[0], len(first)) and steps[stop - 1] == step:
            stop += 1
        reach = (stop - start - 1) * step + 1
        inputs = flat[first[start] : first[start] + reach + weights.shape[1] - 1]
        for left in range(0, flat.shape[1], TILE[1]):
            columns = slice(left, left + TILE[1])
            output[start:stop, columns] = weighted_tile(
                inputs[:, columns], weights[start:stop], reach, step
            )
        start = stop
    return output.reshape(len(first), *rows.shape[1:])


def weighted_tile(inputs: np.ndarray, weights: np.ndarray, reach: int, step: int) -> np.ndarray:
    """[h, w] uint8 -> [n, w] int32 of 0 to 255: output i starts at row i * step, below `reach`."""
    # Rows beyond the image, which weigh nothing, are zero.
    wide = np.zeros((reach + weights.shape[1] - 1, inputs.shape[1]), dtype=np.int32)
    wide[: len(inputs)] = inputs
    total = np.full((len(weights), inputs.shape[1]), 1 << (WEIGHT_BITS - 1), dtype=np.int32)
    product = np.empty_like(total)
    for tap in np.flatnonzero(weights.any(axis=0)):
        np.multiply(wide[tap : tap + reach : step], weights[:, tap, None], out=product)
        total += product
    total >>= WEIGHT_BITS
    return np.clip(total, 0, 255, out=total)


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
