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
# them at once: as many results along each row of it, whose inputs fit the cache.
COLUMNS = 256
# How far bytes of a word of 8 move, and those of them that stay.
STAY = ((1, 0x00FF00FF00FF00FF), (2, 0x0000FFFF0000FFFF), (4, 0x00000000FFFFFFFF))


def within_rows(image: Image.Image | np.ndarray, width: int, out: np.ndarray, top: int = 0) -> None:
    """As `resample.within_rows`, also of [height, width, 3] uint8."""
    rows = np.asarray(image)
    if rows.shape[1] == width:
        out[:, top : top + len(rows)] = rows.transpose(2, 0, 1)
        return
    weigh_columns(rows, *bicubic_weights(rows.shape[1], width, 0, width), out, top)


# Below, rows are taken out of arrays before their samples are: indices that may be negative keep
# the compiler from computing several samples at once.
@numba.njit("(int32[::1], uint8[::1])", nogil=True, cache=True, inline="always")
def to_bytes(total: np.ndarray, out: np.ndarray) -> None:
    for index in range(len(total)):
        out[index] = min(max(total[index] >> WEIGHT_BITS, 0), 255)


@numba.njit("(uint64[::1], uint64[::1], uint64, uint64)", nogil=True, cache=True)
def exchange(upper: np.ndarray, lower: np.ndarray, bits: int, stay: int) -> None:
    """Those bytes of `upper` that do not stay, with those of `lower` that do, `bits` apart."""
    for index in range(len(upper)):
        differ = ((upper[index] >> bits) ^ lower[index]) & stay
        lower[index] ^= differ
        upper[index] ^= differ << bits


@numba.njit(
    "(Array(uint8, 2, 'C', readonly=True), int64, int64, uint8[:, ::1])", nogil=True, cache=True
)
def turn(rows: np.ndarray, left: int, right: int, out: np.ndarray) -> None:
    """Columns `left` to `right` of [h, w] -> [right - left, h].

    `out` has room for both sides rounded up to 8; what is beyond them may be anything.
    """
    words = -((left - right) // 8)
    strip = np.empty((8, 8 * words), np.uint8)
    strip_words, out_words = strip.view(np.uint64), out.view(np.uint64)
    for top in range(0, len(rows), 8):
        for line in range(min(8, len(rows) - top)):
            samples, copy = rows[top + line, left:right], strip[line]
            for index in range(len(samples)):
                copy[index] = samples[index]
        # Each column of words is 8 x 8 bytes, which three exchanges transpose.
        for distance, stay in STAY:
            for line in range(8):
                if not line & distance:
                    upper, lower = strip_words[line], strip_words[line + distance]
                    exchange(upper, lower, np.uint64(8 * distance), np.uint64(stay))
        for word in range(words):
            for byte in range(8):
                out_words[8 * word + byte, top // 8] = strip_words[byte, word]


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
    samples = rows.reshape(height, 3 * width)
    count, taps = weights.shape
    widest = 0
    for left in range(0, count, COLUMNS):
        widest = max(widest, first[min(left + COLUMNS, count) - 1] + taps - first[left])
    tile = np.zeros((3 * widest + 7, ROWS), np.uint8)
    total = np.empty(ROWS, np.int32)
    done = np.empty((COLUMNS, ROWS), np.uint8)
    upright = np.empty((ROWS, COLUMNS), np.uint8)
    for top in range(0, height, ROWS):
        lines = min(ROWS, height - top)
        for left in range(0, count, COLUMNS):
            right = min(left + COLUMNS, count)
            start, stop = first[left], min(first[right - 1] + taps, width)
            turn(samples[top : top + lines], 3 * start, 3 * stop, tile)
            for color in range(3):
                for column in range(left, right):
                    total[:] = HALF
                    for tap in range(taps):
                        weight = weights[column, tap]
                        samples_of_rows = tile[3 * (first[column] - start + tap) + color]
                        for line in range(ROWS):
                            total[line] += weight * np.int32(samples_of_rows[line])
                    to_bytes(total, done[column - left])
                turn(done[: right - left], 0, ROWS, upright)
                for line in range(lines):
                    row, results = out[color, out_top + top + line, left:right], upright[line]
                    for column in range(len(row)):
                        row[column] = results[column]


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
