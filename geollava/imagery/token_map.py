"""Where visual tokens lie: token -> pixel of the canvas -> pixel of the image -> longitude."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from geollava.imagery.canvas import Canvas
from geollava.imagery.scene import Georeference


@dataclass(frozen=True)
class TokenMap:
    """The tokens of a canvas, crop by crop in raster order, each crop's in raster order.

    Attributes:
        canvas: that the crops were cut from.
        grid_size: (rows, cols) of tokens in a crop.
        georeference: of the image, where it has one.
    """

    canvas: Canvas
    grid_size: tuple[int, int]
    georeference: Georeference | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols) of tokens on the canvas."""
        return self.canvas.grid[0] * self.grid_size[0], self.canvas.grid[1] * self.grid_size[1]

    @property
    def pitch(self) -> tuple[float, float]:
        """(width, height) of a token in canvas pixels."""
        rows, cols = self.grid_size
        return self.canvas.crop_size / cols, self.canvas.crop_size / rows

    def over_canvas(self, values: np.ndarray) -> np.ndarray:
        """[C, N] of any type, a value for each token -> [rows, cols], as tokens lie."""
        tiles = values.reshape(*self.canvas.grid, *self.grid_size)
        return tiles.transpose(0, 2, 1, 3).reshape(self.shape)

    def cells(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(rows, cols) on the canvas, [C, K] each, of tokens [C, K] given by their crop's index."""
        rows, cols = self.grid_size
        crop = np.arange(len(indices))[:, None]
        crop_rows, crop_cols = np.divmod(crop, self.canvas.grid[1])
        return crop_rows * rows + indices // cols, crop_cols * cols + indices % cols

    def canvas_boxes(self, indices: np.ndarray) -> np.ndarray:
        """[C, K, 4] float64: (left, top, right, bottom) of tokens [C, K] in canvas pixels."""
        row, col = self.cells(indices)
        boxes = np.stack([col, row, col + 1, row + 1], axis=-1).astype(np.float64)
        return boxes * np.tile(self.pitch, 2)

    def pixel_boxes(self, indices: np.ndarray) -> np.ndarray:
        """The same in pixels of the image. A token in the canvas's black border has no area."""
        left, top, right, bottom = self.canvas.image_box
        size = np.array(self.canvas.image_size)
        scale = size / (right - left, bottom - top)
        boxes = (self.canvas_boxes(indices) - (left, top, left, top)) * np.tile(scale, 2)
        return np.clip(boxes, 0, np.tile(size, 2))

    def touched(self, indices: np.ndarray, box: tuple[float, float, float, float]) -> np.ndarray:
        """[C, K] bool: the tokens that a box (left, top, right, bottom) of image pixels touches."""
        left, top, right, bottom = np.moveaxis(self.pixel_boxes(indices), -1, 0)
        across = (left < box[2]) & (right > box[0])
        along = (top < box[3]) & (bottom > box[1])
        return across & along

    def map_points(self, points: np.ndarray) -> np.ndarray:
        """[..., 2] of (x, y) in image pixels -> longitude and latitude in WGS 84, float64.

        Raises:
            ValueError: the image has no place on the Earth, or one without such coordinates.
            ImportError: rasterio is not installed.
        """
        if self.georeference is None:
            raise ValueError("the image must have a place on the Earth, it has no georeference")
        from rasterio.warp import transform

        a, b, c, d, e, f = self.georeference.transform
        x, y = points[..., 0].ravel(), points[..., 1].ravel()
        placed = transform(self.georeference.crs, "EPSG:4326", a * x + b * y + c, d * x + e * y + f)
        found = np.stack([np.asarray(axis) for axis in placed], axis=-1).reshape(points.shape)
        if not all(math.isfinite(value) for value in found.ravel()):
            raise ValueError("the scene's coordinates have no longitude and latitude")
        return found
