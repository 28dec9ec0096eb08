"""LLaVA: one grid of patches per image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from tokenprune.hosts.adapter import Adapter
from tokenprune.hosts.compat import require_attributes
from tokenprune.hosts.layout import ImageLayout, TokenGrid
from tokenprune.hosts.merging_tower import KNOWN_LAYERS
from tokenprune.hosts.tower_of_host import OF_ATTENTION, tower_layers
from tokenprune.method import Method


class Llava(Adapter):
    """LLaVA-1.5 and its kin.

    A budget counts for an image: the grid of its patches, of the image's own size under a Pixtral
    tower. A Pixtral tower packs images, so that its attention is not read: methods that need it are
    refused.

    A visual token is one patch. The class token, where the tower has one, goes through the
    projector as patches do.
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
        if self.is_pixtral:
            height, width = size
            return ImageLayout.one_grid(height // vision.patch_size, width // vision.patch_size)
        side = vision.image_size // vision.patch_size
        dropped = int(self.config.vision_feature_select_strategy == "default")
        start = self.num_prefix_tokens - dropped
        if start < 0:  # the strategy drops the first patch of a tower without class token
            return ImageLayout.one_grid(1, side * side - 1)
        return ImageLayout(side * side + start, (TokenGrid(start, side, side, side),))

    @property
    def is_pixtral(self) -> bool:
        return self.config.vision_config.model_type == "pixtral"

    @property
    def offers(self) -> frozenset[str]:
        without = set(OF_ATTENTION) if self.is_pixtral else set()
        more = {"cls"} if self.num_prefix_tokens else set()
        more |= {"roots"} if self.merging_layers else set()
        return (super().offers | more) - without

    @property
    def merging_layers(self) -> list[nn.Module]:
        layers, chosen = tower_layers(self.vision_tower), self.config.vision_feature_layer
        if not isinstance(chosen, int) or type(layers[0]).__name__ not in KNOWN_LAYERS:
            return []
        return list(layers)[: chosen if chosen >= 0 else len(layers) + chosen + 1]

    @property
    def projects(self) -> bool:
        return not self.is_pixtral

    def why_not(self, method: Method) -> str | None:
        needed = [name for name in OF_ATTENTION if name in method.needs]
        if self.is_pixtral and needed:
            return (
                f"needs {', '.join(needed)}, which is not read of a Pixtral tower: it packs images"
            )
        return None

    def token_values(self, values: Tensor, sizes: Sequence[Any]) -> list[Tensor]:
        if self.is_pixtral:
            return list(values[0].split([self.layout(size).num_tokens for size in sizes]))
        (grid,) = self.layout(None).grids
        return list(values[:, -grid.num_tokens :])
