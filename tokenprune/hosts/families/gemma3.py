"""Gemma 3: SigLIP tokens average-pooled to a square; images attend in both directions."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from tokenprune.hosts.adapter import Adapter
from tokenprune.hosts.compat import require_attributes
from tokenprune.hosts.layout import ImageLayout


class Gemma3(Adapter):
    """Gemma 3.

    A budget counts for an image: a square of pooled tokens; crops that pan and scan makes are
    images of their own.
    """

    model_types: ClassVar[tuple[str, ...]] = ("gemma3", "shieldgemma2")

    def check(self) -> None:
        super().check()
        require_attributes(self.model, "vision_tower")
        require_attributes(self.config, "mm_tokens_per_image")

    def layout(self, size: Any) -> ImageLayout:
        side = math.isqrt(self.config.mm_tokens_per_image)
        return ImageLayout.one_grid(side, side)
