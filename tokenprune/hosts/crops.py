"""Methods that are handed an image as the tower's crops: the crops share the image's budget."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from tokenprune.hosts.layout import Crops
from tokenprune.hosts.tower import TowerValues
from tokenprune.tokens import ReducedTokens, VisionTokens


def tokens_of(crops: Crops, features: Tensor, tower: TowerValues | None) -> VisionTokens:
    """An image's crops as methods take them.

    Args:
        features: [T, D] of the image's tokens; zeros stand for those that were cut away.
        tower: of the image, crop by crop.
    """
    places = crops.places.to(features.device)
    shown = places >= 0
    read = [] if tower is None else tower.crops()
    return VisionTokens(
        features[places.clamp(min=0)] * shown[:, :, None],
        crops.grid_size,
        shown=shown,
        crop_grid=crops.tiles,
        **TowerValues.fields(read, features.device),
    )


def without_padding(result: ReducedTokens, places: Tensor) -> ReducedTokens:
    """A crop's result, in numbers of the patches that the host places: [N] places, -1 for others.

    For methods that keep patches as they are.
    """
    shown = places >= 0
    kept = shown[result.keep_indices[0]]
    number = shown.cumsum(0) - 1
    return replace(
        result,
        features=result.features[:, kept],
        keep_indices=number[result.keep_indices[:, kept]],
        valid=result.valid[:, kept],
        assignment=number[result.assignment[:, shown]],
        scores=result.scores[:, kept],
        grid_size=result.grid_size if bool(shown.all()) else None,
    )
