"""Pillow's bicubic resize in its two passes, each for a part of an image, equal to the bit.

Pillow weighs the samples of a row, rounds to 8 bits, then weighs rows, each time with 22-bit
weights. The pass within rows is Pillow's own here; the one across rows, which Pillow cannot do for
a part of the image without moving its samples, is repeated in the same arithmetic.
`resample_compiled` does both in less time.
"""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np
from PIL import Image

BICUBIC = Image.Resampling.BICUBIC
WEIGHT_BITS = 22  # of Pillow's fixed-point weights for 8-bit channels
ROWS = 64  # that both are fastest with a multiple of
# Rows and samples of the pass across rows: small enough for the cache, and so large that threads do
# not spend their time waiting for the interpreter between two calls.
TILE = 16, 8192


def within_rows(image: Image.Image, width: int, out: np.ndarray, top: int = 0) -> None:
    """The pass within rows, an RGB image -> rows of `out` [3, h, width] uint8 from `top` on."""
    if image.width != width:
        image = image.resize((width, image.height), BICUBIC)
    for plane, band in zip(out, image.split(), strict=True):
        plane[top : top + image.height] = band


def across_rows(rows: np.ndarray, first: np.ndarray, weights: np.ndarray, out: np.ndarray) -> None:
    """The pass across rows: uint8 [h, w] -> `out` [n, w].

    Row i of the result is the sum of rows from first[i] on, weighed by weights[i]; rows beyond the
    image weigh nothing.
    """
    steps = np.diff(first)
    start = 0
    while start < len(first):
        # Outputs at even distances, whose inputs are a slice.
        step = max(int(steps[start]), 1) if start < len(steps) else 1
        stop = start + 1
        while stop < min(start + TILE[0], len(first)) and steps[stop - 1] == step:
            stop += 1
        reach = (stop - start - 1) * step + 1
        reached = slice(first[start], first[start] + reach + weights.shape[1] - 1)
        for left in range(0, rows.shape[1], TILE[1]):
            columns = slice(left, left + TILE[1])
            tile = weighted_tile(rows[reached, columns], weights[start:stop], reach, step)
            out[start:stop, columns] = tile
        start = stop


def weighted_tile(inputs: np.ndarray, weights: np.ndarray, reach: int, step: int) -> np.ndarray:
    """[h, w] uint8 -> [n, w] int32 of 0 to 255: output i starts at row i * step, below `reach`."""
    wide = np.empty((reach + weights.shape[1] - 1, inputs.shape[1]), dtype=np.int32)
    wide[: len(inputs)] = inputs
    wide[len(inputs) :] = 0
    total = np.full((len(weights), inputs.shape[1]), 1 << (WEIGHT_BITS - 1), dtype=np.int32)
    product = np.empty_like(total)
    for tap in np.flatnonzero(weights.any(axis=0)):
        np.multiply(wide[tap : tap + reach : step], weights[:, tap, None], out=product)
        total += product
    total >>= WEIGHT_BITS
    return np.clip(total, 0, 255, out=total)


@lru_cache(maxsize=16)  # those of the columns serve every block of rows
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


@cache
def pillow_shortens_first() -> bool:
    """Whether Pillow starts with the pass across rows where an image loses far more rows than
    columns, as it does from version 13 on. Rounding between the passes makes them differ."""
    image = Image.frombytes("L", (8, 64), bytes(37 * i * i % 251 for i in range(8 * 64)))
    shortened = image.resize((8, 20), BICUBIC).resize((6, 20), BICUBIC)
    return image.resize((6, 20), BICUBIC).tobytes() == shortened.tobytes()
