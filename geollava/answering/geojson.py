"""Kept tokens as polygons that any GIS opens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from geollava.common.outputs import write_text

if TYPE_CHECKING:
    from geollava.answering.encoding import SceneTokens

SUFFIXES = (".geojson", ".json")
DECIMALS = 8  # of a degree: about a millimeter


def token_features(tokens: SceneTokens) -> dict[str, Any]:
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
    kept, places = tokens.kept, tokens.map
    boxes = places.pixel_boxes(kept.keep_indices.cpu().numpy())
    inside = (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])
    shown = np.argwhere(kept.valid.cpu().numpy() & inside)  # [F, 2] of crop and slot
    boxes = boxes[tuple(shown.T)]
    rings = boxes[:, [[0, 1], [0, 3], [2, 3], [2, 1], [0, 1]]]  # [F, 5, 2], closed
    if tokens.georeference is not None:
        rings = places.map_points(rings).round(DECIMALS)
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
        for (crop, slot), box, ring in zip(shown, boxes, counterclockwise(rings), strict=True)
    ]
    unit = {} if tokens.georeference else {"coordinates": "pixels"}
    return {"type": "FeatureCollection", **unit, "features": features}


def counterclockwise(rings: np.ndarray) -> np.ndarray:
    """[F, 5, 2] closed rings, turned where RFC 7946 asks it of exterior ones."""
    x, y = rings[..., 0], rings[..., 1]
    area = (x[:, :-1] * y[:, 1:] - x[:, 1:] * y[:, :-1]).sum(1)
    return np.where((area < 0)[:, None, None], rings[:, ::-1], rings)


def save(collection: dict[str, Any], path: Path) -> None:
    """Writes the collection whole or not at all."""
    write_text(path, json.dumps(collection, allow_nan=False))
