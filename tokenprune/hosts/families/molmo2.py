"""Molmo2: an overview and a mosaic of crops, whose features are added to the placeholders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenprune.hosts.adapter import Adapter
from tokenprune.hosts.compat import require_parameters
from tokenprune.hosts.layout import ImageLayout, TokenGrid
from tokenprune.method import OF_TOWER, Method


class Molmo2(Adapter):
    """Molmo2.

    A budget counts for an image, and is dealt to its overview and its mosaic of crops in proportion
    to their tokens. A token is pooled from patches of crops that overlap, so that the tower's
    attention is not read: methods that need it are refused.
    """

    model_types: ClassVar[tuple[str, ...]] = ("molmo2",)

    def check(self) -> None:
        super().check()
        require_parameters(self.model.get_image_features, "image_grids")

    @property
    def offers(self) -> frozenset[str]:
        return frozenset({"features", "text"})

    def why_not(self, method: Method) -> str | None:
        if of_tower := [name for name in method.needs if name in OF_TOWER]:
            names = ", ".join(of_tower)
            return f"needs {names} of the tower, which is not read: its crops overlap"
        if method.in_layers and self.config.text_config.norm_after:
            return "reads attention of normalized states, layers with norm_after take others"
        return None

    def why_not_compact(self) -> str | None:
        return "is not proven where layers differ in their rotary embeddings"

    def placed(self, features: Tensor) -> Tensor:
        token = torch.tensor(self.image_token_id, device=features.device)
        return features + self.model.get_input_embeddings()(token)

    def sizes(
        self, arguments: Mapping[str, Any], features: Any, input_ids: Tensor | None
    ) -> Sequence[Any]:
        return [tuple(map(int, grid)) for grid in arguments["image_grids"]]

    def layout(self, size: Any) -> ImageLayout:
        """`size`: rows and columns of the overview, and of the mosaic, as in `image_grids`."""
        rows, cols, more_rows, more_cols = size
        overview = TokenGrid(0, rows, cols, cols)
        mosaic = TokenGrid(overview.num_tokens, more_rows, more_cols, more_cols)
        grids = tuple(grid for grid in (overview, mosaic) if grid.num_tokens)
        return ImageLayout(sum(grid.num_tokens for grid in grids), grids)
