"""PaliGemma: SigLIP tokens as they come; the prompt attends in both directions."""

from __future__ import annotations

from typing import Any, ClassVar

from tokenprune.hosts.adapter import Adapter
from tokenprune.hosts.compat import require_attributes
from tokenprune.hosts.layout import ImageLayout


class PaliGemma(Adapter):
    """PaliGemma.

    A budget counts for an image: the grid of its patches.
    """

    model_types: ClassVar[tuple[str, ...]] = ("paligemma",)

    def check(self) -> None:
        super().check()
        require_attributes(self.model, "vision_tower")

    def layout(self, size: Any) -> ImageLayout:
        side = self.config.vision_config.image_size // self.config.vision_config.patch_size
        return ImageLayout.one_grid(side, side)
