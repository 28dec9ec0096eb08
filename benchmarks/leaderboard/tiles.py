"""Tiles of real imagery from above, with boxes of labeled trees and buildings.

Trees are those of deepforest's annotated pictures (RGB, about 0.1 m a pixel), buildings those of
the SpaceNet picture in solaris (panchromatic, 0.5 m a pixel). They come from five pictures: tiles
of one picture resemble each other, and an interval over tiles says nothing of other places.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree import ElementTree

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.leaderboard.fetch import DEEPFOREST, SOLARIS, fetched

TREE_PIXELS, BUILDING_PIXELS = 280, 225  # of a tile's side, before it is resized for the tower
TREE_PICTURES = {  # by file: every so many tiles, as in a checkerboard
    "2019_YELL_2_528000_4978000_image_crop2": 2,
    "2019_YELL_2_541000_4977000_image_crop": 1,
    "OSBS_029": 1,
    "SOAP_061": 1,
}
COVERED = 0.5  # share of a token's cell from which on it is an object's

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Tile:
    """A square cut, its label, "tree" or "building", and boxes of what is labeled, in pixels."""

    image: Image.Image
    label: str
    boxes: tuple[Box, ...]

    def objects(self, side: int) -> Tensor:
        """[objects, side * side] bool: which tokens of a grid show each object.

        Those whose cell it covers by half or more, or the one that it covers most.
        """
        edges = np.linspace(0, self.image.width, side + 1)
        masks = []
        for left, top, right, bottom in self.boxes:
            across = np.clip(np.minimum(edges[1:], right) - np.maximum(edges[:-1], left), 0, None)
            down = np.clip(np.minimum(edges[1:], bottom) - np.maximum(edges[:-1], top), 0, None)
            covered = np.outer(down, across).ravel() / edges[1] ** 2
            mask = covered >= COVERED
            mask[covered.argmax()] = True
            masks.append(mask)
        return torch.from_numpy(np.stack(masks))


def labeled_tiles() -> list[Tile]:
    """Those with at least one object, in an order that never changes."""
    return [*trees(), *buildings()]


def trees() -> Iterator[Tile]:
    folder = fetched(DEEPFOREST) / "deepforest/data"
    for name, step in TREE_PICTURES.items():
        picture = Image.open(folder / f"{name}.png").convert("RGB")
        boxes = [
            tuple(float(found.findtext(edge) or "nan") for edge in ("xmin", "ymin", "xmax", "ymax"))
            for found in ElementTree.parse(folder / f"{name}.xml").iter("bndbox")
        ]
        yield from cut(picture, "tree", boxes, TREE_PIXELS, step)  # type: ignore[arg-type]


def buildings() -> Iterator[Tile]:
    import rasterio

    folder = fetched(SOLARIS) / "solaris/data"
    with rasterio.open(folder / "sample_geotiff.tif") as file:
        pixels, to_map = file.read(1), file.transform
    low, high = np.percentile(pixels, (2, 98))
    shown = (255 * np.clip((pixels - low) / (high - low), 0, 1)).astype(np.uint8)
    boxes = []
    for feature in json.loads((folder / "geotiff_labels.geojson").read_text())["features"]:
        corners = np.array([~to_map * point[:2] for point in points(feature["geometry"])])
        boxes.append((*corners.min(0).tolist(), *corners.max(0).tolist()))
    picture = Image.fromarray(shown).convert("RGB")
    yield from cut(picture, "building", boxes, BUILDING_PIXELS, 1)


def points(geometry: dict[str, object]) -> Iterator[list[float]]:
    """Every point of a GeoJSON geometry."""
    stack = [geometry["coordinates"]]
    while stack:
        part = stack.pop()
        if isinstance(part, list) and isinstance(part[0], list):
            stack += part
        elif isinstance(part, list):
            yield part


def cut(
    picture: Image.Image, label: str, boxes: list[Box], pixels: int, step: int
) -> Iterator[Tile]:
    """Tiles side by side that hold an object's center; objects are cut at the tile's edge."""
    for row in range(picture.height // pixels):
        for col in range(picture.width // pixels):
            if (row + col) % step:
                continue
            left, top = col * pixels, row * pixels
            inside = []
            for x0, y0, x1, y1 in boxes:
                moved = (x0 - left, y0 - top, x1 - left, y1 - top)
                center = ((moved[0] + moved[2]) / 2, (moved[1] + moved[3]) / 2)
                if all(0 <= place < pixels for place in center):
                    inside.append(tuple(min(max(edge, 0), pixels) for edge in moved))
            if inside:
                image = picture.crop((left, top, left + pixels, top + pixels))
                yield Tile(image, label, tuple(inside))  # type: ignore[arg-type]
