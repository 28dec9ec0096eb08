"""Boxes that a text names, as questions, answers and benchmarks write them."""

from __future__ import annotations

import re

NUMBER = r"-?\d+(?:\.\d+)?"
# [x1, y1, x2, y2], (x1, y1, x2, y2) or (x1, y1), (x2, y2), also in double brackets.
BOX = re.compile(
    rf"[\[(<]\s*({NUMBER})\s*,\s*({NUMBER})\s*[\])>]?\s*,\s*[\[(<]?\s*({NUMBER})\s*,\s*({NUMBER})\s*[\])>]"
)

Box = tuple[float, float, float, float]


def boxes_in(text: str) -> list[Box]:
    """The boxes that a text names, as they are written."""
    return [tuple(float(value) for value in match) for match in BOX.findall(text)]  # type: ignore[misc]
