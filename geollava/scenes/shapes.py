"""Outlines of things, and where in a scene they lie."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geollava.scenes.scene import Thing

Array = NDArray[Any]

# Outlines in pixels at scale 1, heading along x: (x, y) corners.
OUTLINES: dict[str, list[tuple[float, float]]] = {
    "car": [(-3, -1.5), (3, -1.5), (3, 1.5), (-3, 1.5)],
    "truck": [(-6, -1.8), (2.5, -1.8), (2.5, -1), (6, -1), (6, 1), (2.5, 1), (2.5, 1.8), (-6, 1.8)],
    "airplane": [
        (9, 0), (7, 1), (2, 1), (-2, 9), (-4, 9), (-1.5, 1), (-6, 1), (-8, 3.5), (-9, 3.5),
        (-8, 0), (-9, -3.5), (-8, -3.5), (-6, -1), (-1.5, -1), (-4, -9), (-2, -9), (2, -1), (7, -1),
    ],
    "ship": [(-9, -2.5), (5, -2.5), (10, 0), (5, 2.5), (-9, 2.5)],
    "storage tank": [
        (4.5 * math.cos(step * math.pi / 12), 4.5 * math.sin(step * math.pi / 12))
        for step in range(24)
    ],
}  # fmt: skip


def turn(outline: Any, heading: float, scale: float, x: float, y: float) -> Array:
    cosine, sine = math.cos(heading), math.sin(heading)
    return np.asarray(outline) * scale @ np.array([[cosine, sine], [-sine, cosine]]) + (x, y)


def box_of(thing: Thing, scale: float) -> tuple[int, int, int, int]:
    """The smallest box of whole pixels, x1, y1, x2, y2, around a thing without trail and shadow."""
    corners = turn(OUTLINES[thing.kind], thing.heading, scale, thing.x, thing.y)
    (left, top), (right, bottom) = np.floor(corners.min(0)), np.ceil(corners.max(0))
    return int(left), int(top), int(right), int(bottom)
