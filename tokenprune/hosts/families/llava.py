"""LLaVA: one grid of patches per image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from tokenprune.hosts.adapter import Adapter
from tokenprune.hosts.compat import require_attributes
from tokenprune.hosts.layout import ImageLayout, TokenGrid


class Llava(Adapter):
    """LLaVA-1.5 and its kin.

    A budget counts for an image: the grid of its patches, of the image's own size under a Pixtral
    tower. A Pixtral tower packs images, so that its attention is not read: methods that need it are
    refused.
    """

    model_types: ClassVar[tuple[str, ...]] = ("llava",)

    def check(self) -> None:
        super().check()
        require_attributes(self.model, "vision_tower")
        require_attributes(self.config, "vision_feature_layer", "vision_feature_select_strategy")

    def sizes(
        self, arguments: Mapping[str, Any], features: Any, input_ids: Tensor | None
    ) -> Sequence[Any]:
        sizes = arguments.get("image_sizes")
        if sizes is None:
            return super().sizes(arguments, features, input_ids)
        return [tuple(map(int, size)) for size in sizes]

    def layout(self, size: Any) -> ImageLayout:
        """`size`: (height, width) in pixels for a Pixtral tower, else not looked at."""
        vision = self.config.vision_config
        if vision.model_type == "pixtral":
            height, width = size
            return ImageLayout.one_grid(height // vision.patch_size, width // vision.patch_size)
        side = vision.image_size // vision.patch_size
        dropped = int(self.config.vision_feature_select_strategy == "default")
        start = self.num_prefix_tokens - dropped
        if start < 0:  # the strategy drops the first patch of a tower without class token
            return ImageLayout.one_grid(1, side * side - 1)
        return ImageLayout(side * side + start, (TokenGrid(start, side, side, side),))

    @property
    def attention_layer(self) -> nn.Module:
        if self.config.vision_config.model_type == "pixtral":
            raise NotImplementedError("attention of a Pixtral tower is not read: it packs images")
        return super().attention_layer

    def token_attention(self, received: Tensor, sizes: Sequence[Any]) -> list[Tensor]:
        (grid,) = self.layout(None).grids
        return list(received[:, -grid.num_tokens :])
