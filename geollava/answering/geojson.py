"""Kept tokens as polygons that any GIS opens."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from geollava.answering.overlay import canvas_grid
from geollava.common.outputs import written_whole
from geollava.imagery import Scene, image_box

if TYPE_CHECKING:
    from geollava.model.token_reduction import ReducedTokens

SUFFIXES = (".geojson", ".json")
DECIMALS = 8  # of a degree: about a millimeter


def token_boxes(
    kept: ReducedTokens, image_size: tuple[int, int], canvas_size: tuple[int, int]
) -> np.ndarray:
    """[C, K, 4] float64: (left, top, right, bottom) of every kept slot in pixels of the image.

    A token that lies in the canvas's black border has no area.

    Args:
        kept: of all crops, row by row.
        image_size, canvas_size: (width, height) in pixels.
    """
    assert kept.grid_size is not None
    token_rows, token_cols = kept.grid_size
    crop_rows, crop_cols = canvas_grid(len(kept.assignment), canvas_size)
    indices = kept.keep_indices.cpu().numpy()  # [C, K]
    crops = np.arange(len(indices))[:, None]
    row = crops // crop_cols * token_rows + indices // token_cols
    col = crops % crop_cols * token_cols + indices % token_cols
    boxes = np.stack([col, row, col + 1, row + 1], axis=-1).astype(np.float64)

    # Tokens of the canvas -> pixels of the canvas -> pixels of the image.
    canvas_token = np.array(canvas_size) / (crop_cols * token_cols, crop_rows * token_rows)
    left, top, right, bottom = image_box(image_size, canvas_size)
    scale = np.array(image_size) / (right - left, bottom - top)
    boxes = (boxes * np.tile(canvas_token, 2) - (left, top, left, top)) * np.tile(scale, 2)
    return np.clip(boxes, 0, np.tile(image_size, 2))


def token_features(
    scene: Scene, kept: ReducedTokens, canvas_size: tuple[int, int]
) -> dict[str, Any]:
    """The kept tokens as a GeoJSON FeatureCollection (RFC 7946).

    Where the scene has a place on the Earth, coordinates are longitude and latitude in WGS 84; a
    polygon across the antimeridian is not cut. Elsewhere they are pixels (x to the right, y down),
    and the collection's member `coordinates` says so.

    Each feature has the properties `pixel_box` [left, top, right, bottom] in the image, `crop` and
    `token` (raster order), `score`, which ranked it within its crop, and `tokens`, how many it is
    the mean of.

    Raises:
        ImportError: a scene with a place on the Earth, and rasterio is not installed.
        ValueError: its coordinates have no longitude and latitude.
    """
    boxes = token_boxes(kept, scene.size, canvas_size)
    inside = (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])
    shown = np.argwhere(kept.valid.cpu().numpy() & inside)  # [F, 2] of crop and slot
    boxes = boxes[tuple(shown.T)]
    rings = map_rings(scene, boxes[:, [[0, 1], [0, 3], [2, 3], [2, 1], [0, 1]]])
    indices, scores, counts = (
        tensor.cpu().tolist() for tensor in (kept.keep_indices, kept.scores.float(), kept.counts)
    )
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [ring.tolist()]},
            "properties": {
                "pixel_box": [round(edge, 3) for edge in box.tolist()],
                "crop": int(crop),
                "token": indices[crop][slot],
                "score": scores[crop][slot],
                "tokens": counts[crop][slot],
            },
        }
        for (crop, slot), box, ring in zip(shown, boxes, rings, strict=True)
    ]
    unit = {} if scene.georeference else {"coordinates": "pixels"}
    return {"type": "FeatureCollection", **unit, "features": features}


def map_rings(scene: Scene, rings: np.ndarray) -> np.ndarray:
    """[F, 5, 2] closed rings in pixels -> in longitude and latitude, or as they are; exterior rings
    run counterclockwise, as RFC 7946 asks."""
    if scene.georeference is not None:
        from rasterio.warp import transform

        a, b, c, d, e, f = scene.georeference.transform
        x, y = rings[..., 0].ravel(), rings[..., 1].ravel()
        crs = scene.georeference.crs
        longitude, latitude = transform(crs, "EPSG:4326", a * x + b * y + c, d * x + e * y + f)
        rings = np.stack([longitude, latitude], axis=-1).reshape(rings.shape).round(DECIMALS)
        if not all(math.isfinite(value) for value in rings.ravel()):
            raise ValueError("the scene's coordinates have no longitude and latitude")
    x, y = rings[..., 0], rings[..., 1]
    area = (x[:, :-1] * y[:, 1:] - x[:, 1:] * y[:, :-1]).sum(1)
    return np.where((area < 0)[:, None, None], rings[:, ::-1], rings)


def save(collection: dict[str, Any], path: Path) -> None:
    """Writes the collection whole or not at all."""
    with written_whole(path) as partial:
        partial.write_text(json.dumps(collection, allow_nan=False), encoding="utf-8")
