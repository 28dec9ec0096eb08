"""Methods that are handed an image as the tower's crops: the crops share the image's budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokenprune.hosts.layout import Crops, ImageLayout
from tokenprune.hosts.reduced import (
    ProjectedImage,
    ReducedGrids,
    places_of_slots,
    unpacked,
    whole,
)
from tokenprune.hosts.tower import TowerValues
from tokenprune.method import Method
from tokenprune.tokens import ReducedTokens, VisionTokens


@dataclass(frozen=True)
class CropsOfImage:
    """One image's crops on their way to a method.

    Attributes:
        layout: of the image.
        features: [T, D] of its tokens, as they enter the language model.
        tower: what the method needs of the tower, crop by crop, or None.
    """

    layout: ImageLayout
    features: Tensor
    tower: TowerValues | None

    @property
    def places(self) -> Tensor:
        """[C, N] int64: the number of each patch's token; -1 where the crop shows padding."""
        return self.layout.crops.places.to(self.features.device)

    def beside(self, method: Method) -> Tensor:
        """[n] int64: tokens that stay beside what a method keeps: those that are of no patch.

        As official codes leave newline tokens. Rows from before the projector are all there is.
        """
        shown = torch.zeros(len(self.features), dtype=torch.bool, device=self.features.device)
        shown[self.places[self.places >= 0]] = True
        return (~shown).nonzero()[: 0 if method.before_projector else None, 0]

    def tokens(self) -> VisionTokens:
        """As methods take them: the tower's features where they were read, or those that enter the
        language model, zeros for those that were cut away.
        """
        crops, shown, device = self.layout.crops, self.places >= 0, self.features.device
        fields = TowerValues.fields([] if self.tower is None else self.tower.crops(), device)
        if "features" not in fields:
            fields["features"] = self.features[self.places.clamp(min=0)] * shown[:, :, None]
        return VisionTokens(grid_size=crops.grid_size, shown=shown, crop_grid=crops.tiles, **fields)

    def reduced(
        self, method: Method, num_keep: int, project: Callable[[Tensor], Tensor]
    ) -> list[ReducedGrids]:
        """The image's budget is dealt to its crops in equal parts, then as the method does.

        Args:
            num_keep: tokens to keep of the image.
            project: see `reduce_images`.
        """
        if num_keep == len(self.features):
            everything = torch.arange(num_keep, device=self.features.device)
            whole_image = whole(VisionTokens(self.features[None], (1, num_keep)))
            return [ReducedGrids(everything[None], whole_image)]
        tokens = self.tokens()
        result = method.reduce(tokens, share_of_crop(num_keep, self.layout.crops))
        name = type(method).__name__
        parts = unpacked(name, result, tokens, with_extra=method.before_projector)
        if method.before_projector:
            return [self._projected(name, parts, result.order, project)]
        return [
            ReducedGrids(of_crop[None, of_crop >= 0], without_padding(one, of_crop))
            for of_crop, one in zip(self.places, parts, strict=True)
            if bool((of_crop >= 0).any())
        ]

    def _projected(
        self,
        name: str,
        parts: list[ReducedTokens],
        order: Tensor | None,
        project: Callable[[Tensor], Tensor],
    ) -> ProjectedImage:
        device = self.features.device  # the projector may have another
        crops = tuple(
            replace(
                part,
                features=project(part.features).to(device),
                extra=None if part.extra is None else project(part.extra).to(device),
            )
            for part in parts
        )
        rows = torch.cat([crop.rows[0] for crop in crops])
        rows = rows if order is None else rows[order]
        dropped = torch.ones(len(self.features), dtype=torch.bool, device=rows.device)
        slots = places_of_slots(crops, self.places)
        dropped[slots] = False
        extra = dropped.nonzero()[:, 0].flip(0)[: len(rows) - len(slots)]
        columns = torch.cat([slots, extra]).sort().values
        if len(columns) != len(rows):
            raise ValueError(
                f"{name} must give at most as many rows as the image has tokens, "
                f"{len(self.features)}, got {len(rows)}"
            )
        everything = torch.arange(len(self.features), device=rows.device)[None]
        return ProjectedImage(everything, None, crops, self.places, columns, rows)


def share_of_crop(num_keep: int, crops: Crops) -> int:
    """What a crop keeps of an image's budget."""
    num_crops, num_patches = crops.places.shape
    return min(max(num_keep // num_crops, 1), num_patches)


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
