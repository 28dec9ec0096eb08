"""Which canvas an image gets, as the published model chooses, and where on it the image lies."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

MAX_CROPS = 10_000  # of a canvas: more than any model reads, and few enough to be listed


@dataclass(frozen=True)
class Canvas:
    """The black sheet that an image is fitted to and cut into crops from.

    Attributes:
        image_size: (width, height) of the image in its own pixels.
        size: (width, height) in pixels, multiples of `crop_size`.
        crop_size: side of a crop in pixels.
    """

    image_size: tuple[int, int]
    size: tuple[int, int]
    crop_size: int

    def __post_init__(self) -> None:
        if any(side < 1 or side % self.crop_size for side in self.size):
            raise ValueError(
                f"a canvas must be a multiple of its crops' {self.crop_size} px, got {self.size}"
            )

    @classmethod
    def choose(
        cls, image_size: tuple[int, int], sizes: Sequence[Sequence[int]], crop_size: int
    ) -> Canvas:
        """The canvas for an image, of those that are allowed; see `select_canvas`."""
        return cls(image_size, select_canvas(*image_size, sizes), crop_size)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, cols) of crops."""
        width, height = self.size
        return height // self.crop_size, width // self.crop_size

    @property
    def crops(self) -> int:
        rows, cols = self.grid
        return rows * cols

    @property
    def fitted_size(self) -> tuple[int, int]:
        """(width, height) of the resized image: one side fills the canvas, the other follows."""
        (width, height), (canvas_width, canvas_height) = self.image_size, self.size
        scale_width, scale_height = canvas_width / width, canvas_height / height
        if scale_width < scale_height:
            return canvas_width, min(math.ceil(height * scale_width), canvas_height)
        return min(math.ceil(width * scale_height), canvas_width), canvas_height

    @property
    def image_box(self) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) of the image, which lies in the middle, in canvas pixels."""
        width, height = self.fitted_size
        left, top = (self.size[0] - width) // 2, (self.size[1] - height) // 2
        return left, top, left + width, top + height


def allowed_canvases(crop_size: int, max_crops: int, max_aspect_ratio: int) -> list[list[int]]:
    """[width, height] in pixels of each canvas of 2 to `max_crops` crops, in published order.

    Raises:
        ValueError: there is none.
    """
    canvases = [
        [crop_size * cols, crop_size * rows]
        for cols in range(1, max_crops + 1)
        for rows in range(
            math.ceil(cols / max_aspect_ratio), min(max_crops // cols, max_aspect_ratio * cols) + 1
        )
        if cols * rows > 1
    ]
    if not canvases:
        raise ValueError(
            "max_crops and max_aspect_ratio must allow a canvas of at least two crops, "
            f"got {max_crops} and {max_aspect_ratio}"
        )
    return canvases


def parse_canvases(pinpoints: str | Sequence[Sequence[int]], crop_size: int) -> list[list[int]]:
    """Canvases as a config lists them: pairs of pixels, or a range such as "(1x1),...,(6x6)"."""
    if isinstance(pinpoints, str):
        counts = [(int(a), int(b)) for a, b in re.findall(r"(\d+)\s*[x,]\s*(\d+)", pinpoints)]
        if "..." in pinpoints and len(counts) == 2:
            (first_cols, first_rows), (last_cols, last_rows) = counts
            check_crops(last_cols, last_rows)
            return [
                [crop_size * cols, crop_size * rows]
                for cols in range(first_cols, last_cols + 1)
                for rows in range(first_rows, last_rows + 1)
            ]
        pinpoints = counts
    try:
        canvases = [[int(width), int(height)] for width, height in pinpoints]
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"image_grid_pinpoints must be pairs of pixels or a range, got {pinpoints!r}"
        ) from error
    bad = [canvas for canvas in canvases if min(canvas) < 1 or any(s % crop_size for s in canvas)]
    if bad or not canvases:
        raise ValueError(
            f"image_grid_pinpoints must be sizes in multiples of {crop_size} px, "
            f"got {bad[0] if bad else 'none'}"
        )
    for width, height in canvases:
        check_crops(width // crop_size, height // crop_size)
    return canvases


def check_crops(cols: int, rows: int) -> None:
    if cols * rows > MAX_CROPS:
        raise ValueError(
            f"image_grid_pinpoints must name canvases of at most {MAX_CROPS:,} crops, "
            f"got {cols} x {rows}"
        )


def select_canvas(width: int, height: int, canvases: Sequence[Sequence[int]]) -> tuple[int, int]:
    """The canvas that shows most of the image's pixels, and of those the one that wastes least.

    Args:
        width, height: of the image, in pixels.
        canvases: [width, height] in pixels; ties go to the first.

    Returns:
        (width, height) in pixels.
    """
    if width < 1 or height < 1:
        raise ValueError(f"an image must have at least one pixel, got {width} x {height}")
    best, best_key = None, (-1, math.inf)
    for canvas_width, canvas_height in canvases:
        scale = min(canvas_width / width, canvas_height / height)
        scaled = int(width * scale) * int(height * scale)
        effective = min(scaled, width * height)
        wasted = canvas_width * canvas_height - effective
        if effective > best_key[0] or (effective == best_key[0] and wasted < best_key[1]):
            best, best_key = (canvas_width, canvas_height), (effective, wasted)
    assert best is not None
    return best
