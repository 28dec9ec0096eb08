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
BLOCK_BYTES = 2 * 1024 * 1024  # of rows that pass the first pass at a time
# Rows and samples of the pass across rows: small enough for the cache, and so large that threads do
# not spend their time waiting for the interpreter between two calls.
TILE = 16, 8192
MAX_WORKERS = 4  # bands at a time; each takes some 30 MB on an 8K canvas

Item = TypeVar("Item")
Result = TypeVar("Result")


def crop_rows(
    scene: Scene,
    canvas: tuple[int, int],
    crop_size: int,
    resize: str = "pillow",
    out: Tensor | None = None,
) -> Iterator[Tensor]:
    """The scene fitted to a canvas, centered on black, cut into crops: one row of them at a time.

    A few rows are made ahead by other threads.

    Args:
        canvas: (width, height) in pixels, multiples of `crop_size`.
        resize: "pillow" is the published pipeline to the bit; "fast" starts from a reduced form
            (an overview, a JPEG decoded at half size) wherever one holds as many pixels.
        out: [rows, cols, 3, crop_size, crop_size] uint8 to write the crops into.

    Yields:
        [canvas width / crop_size, 3, crop_size, crop_size] uint8.
    """
    size = fitted_size(scene.size, canvas)
    left, top, right, bottom = image_box(scene.size, canvas)
    factor = scene.factor(size, resize)
    rows, cols = canvas[1] // crop_size, canvas[0] // crop_size

    def row(index: int) -> Tensor:
        canvas_top = index * crop_size
        first, last = max(canvas_top, top), min(canvas_top + crop_size, bottom)
        shape = (cols, 3, crop_size, crop_size)
        crops = torch.empty(shape, dtype=torch.uint8) if out is None else out[index]
        by_rows = crops.numpy().transpose(1, 2, 0, 3)  # [3, crop_size, cols, crop_size]
        if (left, right, last - first) == (0, canvas[0], crop_size):  # nothing black in between
            resize_rows(scene, size, first - top, last - top, factor, by_rows)
            return crops
        band = np.zeros((3, crop_size, canvas[0]), dtype=np.uint8)
        if first < last:
            image = band[:, first - canvas_top : last - canvas_top, left:right]
            resize_rows(scene, size, first - top, last - top, factor, image)
        by_rows[...] = band.reshape(by_rows.shape)
        return crops

    return in_order(row, range(rows), min(MAX_WORKERS, os.cpu_count() or 1))


def all_crops(
    scene: Scene, canvas: tuple[int, int], crop_size: int, resize: str = "pillow"
) -> Tensor:
    """All of `crop_rows`, [C, 3, crop_size, crop_size] uint8, row by row."""
    width, height = canvas
    shape = (height // crop_size, width // crop_size, 3, crop_size, crop_size)
    # numpy asks for huge pages, torch does not: 48,000 page faults less for an 8K image.
    crops = torch.from_numpy(np.empty(shape, dtype=np.uint8))
    for _ in crop_rows(scene, canvas, crop_size, resize, out=crops):
        pass
    return crops.flatten(0, 1)


def resized(scene: Scene, size: tuple[int, int], resize: str = "fast") -> Image.Image:
    """The whole scene at (width, height) `size`, as an RGB image."""
    planes = np.empty((3, size[1], size[0]), dtype=np.uint8)
    resize_rows(scene, size, 0, size[1], scene.factor(size, resize), planes)
    return image_of(planes)


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


def resize_rows(
    scene: Scene, size: tuple[int, int], top: int, bottom: int, factor: int, out: np.ndarray
) -> None:
    """Rows `top` to `bottom` of the scene resized to (width, height) `size`.

    Args:
        out: [3, bottom - top, width] uint8 to write them into, a plane per color as crops have
            them; or with the width in two dimensions, as that of crops in a row.
    """
    width, height = size
    source_width, source_height = (math.ceil(side / factor) for side in scene.size)
    block = max(1, BLOCK_BYTES // (3 * source_width))

    def read(start: int, stop: int, width: int) -> np.ndarray:
        """Rows of the source, a block at a time through the pass within rows."""
        planes = np.empty((3, stop - start, width), dtype=np.uint8)
        for block_start in range(start, stop, block):
            block_stop = min(block_start + block, stop)
            image = scene.read_image(block_start, block_stop, factor)
            to_planes(widened(image, width), planes[:, block_start - start : block_stop - start])
        return planes

    if source_height == height:
        out[...] = read(top, bottom, width).reshape(out.shape)
        return
    first, weights = bicubic_weights(source_height, height, top, bottom)
    start = int(first[0])
    stop = min(int(first[-1]) + weights.shape[1], source_height)
    taller, wider = source_height - height, source_width - width
    if taller > max(0, 2 * wider) and pillow_shortens_first():
        planes = np.empty((3, bottom - top, source_width), dtype=np.uint8)
        weigh_rows(read(start, stop, source_width), first - start, weights, planes)
        to_planes(widened(image_of(planes), width), out)
    else:
        weigh_rows(read(start, stop, width), first - start, weights, out)


def widened(image: Image.Image, width: int) -> Image.Image:
    """The pass within rows."""
    return image if image.width == width else image.resize((width, image.height), BICUBIC)


def to_planes(image: Image.Image, out: np.ndarray) -> None:
    """An RGB image -> [3, height, width], or with the width in two dimensions."""
    for plane, band in zip(out, image.split(), strict=True):
        plane[...] = np.asarray(band).reshape(plane.shape)


def image_of(planes: np.ndarray) -> Image.Image:
    """[3, height, width] uint8 -> an RGB image."""
    return Image.merge("RGB", [Image.fromarray(plane) for plane in planes])


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


def weigh_rows(rows: np.ndarray, first: np.ndarray, weights: np.ndarray, out: np.ndarray) -> None:
    """The pass across rows, uint8 [3, H, W] -> `out` [3, n, W], or with W in two dimensions.

    Row i of the output is the weighted sum of rows from first[i] on.
    """
    steps = np.diff(first)
    inner = out.shape[3] if out.ndim == 4 else 1
    tile = TILE[1] // inner
    start = 0
    while start < len(first):
        # Outputs at even distances, whose inputs are a slice.
        step = max(int(steps[start]), 1) if start < len(steps) else 1
        stop = start + 1
        while stop < min(start + TILE[0], len(first)) and steps[stop - 1] == step:
            stop += 1
        reach = (stop - start - 1) * step + 1
        reached = slice(first[start], first[start] + reach + weights.shape[1] - 1)
        for plane, target in zip(rows, out, strict=True):
            for left in range(0, out.shape[2], tile):
                columns = slice(left * inner, (left + tile) * inner)
                part = target[start:stop, left : left + tile]
                values = weighted_tile(plane[reached, columns], weights[start:stop], reach, step)
                part[...] = values.reshape(part.shape)
        start = stop


def weighted_tile(inputs: np.ndarray, weights: np.ndarray, reach: int, step: int) -> np.ndarray:
    """[h, w] uint8 -> [n, w] int32 of 0 to 255: output i starts at row i * step, below `reach`."""
    wide = np.empty((reach + weights.shape[1] - 1, inputs.shape[1]), dtype=np.int32)
    wide[: len(inputs)] = inputs
    wide[len(inputs) :] = 0  # rows beyond the image, which weigh nothing
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
