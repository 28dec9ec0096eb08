"""Granite-Docling: tiles of one size, pixel-shuffled, coarse or fine; each counts as an image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from tokenprune.hosts.adapter import Adapter
from tokenprune.hosts.compat import require_attributes, require_parameters
from tokenprune.hosts.layout import ImageLayout
from tokenprune.hosts.tower_of_host import pool_patches


class GraniteDocling(Adapter):
    """Granite-Docling.

    A budget counts for a tile, the overview among them: the host does not say which tiles are one
    page's. Deepstack features leave with their tokens.
    """

    model_types: ClassVar[tuple[str, ...]] = ("granite_docling",)
    unit: ClassVar[str] = "crop"

    def check(self) -> None:
        super().check()
        require_attributes(self.model, "vision_model", "image_seq_len")
        require_parameters(self.model.get_image_features, "tile_fine_mask")

    @property
    def language_model(self) -> nn.Module:
        return self.model.text_model

    @property
    def vision_tower(self) -> nn.Module:
        return self.model.vision_model

    def per_image(self, features: Any, arguments: Mapping[str, Any]) -> Any:
        """The host gives one entry per prompt, with all of its tiles."""
        fine = arguments.get("tile_fine_mask") is not None
        tokens = self.model.image_seq_len * (4 if fine else 1)
        return [tile for prompt in features for tile in prompt.split(tokens)]

    def sizes(
        self, arguments: Mapping[str, Any], features: Any, input_ids: Tensor | None
    ) -> Sequence[Any]:
        return self.lengths(features)

    def layout(self, size: Any) -> ImageLayout:
        """`size`: the number of a tile's tokens; None for those of the coarse way."""
        side = math.isqrt(self.model.image_seq_len if size is None else size)
        return ImageLayout.one_grid(side, side)

    def token_values(self, values: Tensor, sizes: Sequence[Any]) -> list[Tensor]:
        (grid,) = self.layout(sizes[0]).grids
        return list(pool_patches(values, grid.rows, grid.cols))
