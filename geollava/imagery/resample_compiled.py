"""The passes of `resample` as numba compiles them: the same arithmetic, equal to the bit.

Compiled once on a machine (seconds), then read from numba's cache. Importing this needs the extra
`fast`.
"""

from __future__ import annotations

import numba
import numpy as np
from PIL import Image

from geollava.imagery.resample import ROWS, WEIGHT_BITS, bicubic_weights

HALF = 1 << (WEIGHT_BITS - 1)
# The pass within rows turns a tile of `ROWS` rows on its side, so that each step is one for all of
# them at once: results along each row of it.
COLUMNS = 128


def within_rows(image: Image.Image, width: int, out: np.ndarray, top: int = 0) -> None:
    """As `resample.within_rows`."""
    rows = np.asarray(image)
    if image.width == width:
        out[:, top : top + image.height] = rows.transpose(2, 0, 1)
        return
    weigh_columns(rows, *bicubic_weights(image.width, width, 0, width), out, top)


@numba.njit("(int32[::1], uint8[::1])", nogil=True, cache=True, inline="always")
def to_bytes(total: np.ndarray, out: np.ndarray) -> None:
    for index in range(len(total)):
        out[index] = min(max(total[index] >> WEIGHT_BITS, 0), 255)


@numba.njit(
    "(Array(uint8, 3, 'C', readonly=True), int64[::1], int32[:, ::1], uint8[:, :, ::1], int64)",
    nogil=True,
    cache=True,
)
def weigh_columns(
    rows: np.ndarray, first: np.ndarray, weights: np.ndarray, out: np.ndarray, out_top: int
) -> None:
    """[h, w, 3] -> rows of [3, ..., n] from `out_top` on"""
    height, width = rows.shape[:2]
    count, taps = weights.shape
    widest = 0
    for left in range(0, count, COLUMNS):
        widest = max(widest, first[min(left + COLUMNS, count) - 1] + taps - first[left])
    tile = np.zeros((3 * widest, ROWS), np.uint8)
    total = np.empty(ROWS, np.int32)
    done = np.empty((3, COLUMNS, ROWS), np.uint8)
    for top in range(0, height, ROWS):
        lines = min(ROWS, height - top)
        for left in range(0, count, COLUMNS):
            right = min(left + COLUMNS, count)
            start, stop = first[left], min(first[right - 1] + taps, width)
            for line in range(lines):
                samples = rows[top + line, start:stop].reshape(-1)
                for index in range(len(samples)):
                    tile[index, line] = samples[index]
            for column in range(left, right):
                for color in range(3):
                    total[:] = HALF
                    for tap in range(taps):
                        weight = weights[column, tap]
                        samples_of_rows = tile[3 * (first[column] - start + tap) + color]
                        for line in range(ROWS):
                            total[line] += weight * np.int32(samples_of_rows[line])
                    to_bytes(total, done[color, column - left])
            for color in range(3):
                for line in range(lines):
                    row = out[color, out_top + top + line]
                    for column in range(right - left):
                        row[left + column] = done[color, column, line]


@numba.njit("(uint8[:, ::1], int64[::1], int32[:, ::1], uint8[:, ::1])", nogil=True, cache=True)
def across_rows(rows: np.ndarray, first: np.ndarray, weights: np.ndarray, out: np.ndarray) -> None:
    """As `resample.across_rows`."""
    width = rows.shape[1]
    total = np.empty(width, np.int32)
    for index in range(len(first)):
        total[:] = HALF
        for tap in range(weights.shape[1]):
            weight = weights[index, tap]
            if weight != 0:  # rows beyond the image weigh nothing
                row = rows[first[index] + tap]
                for column in range(width):
                    total[column] += weight * np.int32(row[column])
        to_bytes(total, out[index])
