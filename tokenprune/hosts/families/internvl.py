"""InternVL: crops of one size, pixel-shuffled; each crop counts as an image."""

from __future__ import annotations

from typing import Any, ClassVar

from tokenprune.hosts.adapter import Adapter
from tokenprune.hosts.compat import require_attributes
from tokenprune.hosts.layout import ImageLayout


class InternVL(Adapter):
    """InternVL.

    A budget counts for a crop, the thumbnail among them: the host does not say which crops are one
    image's.
    """

    model_types: ClassVar[tuple[str, ...]] = ("internvl", "qianfan_ocr")
    unit: ClassVar[str] = "crop"

    def check(self) -> None:
        super().check()
        require_attributes(self.model, "vision_tower")
        require_attributes(self.config, "vision_feature_layer", "downsample_ratio")

    def layout(self, size: Any) -> ImageLayout:
        vision, ratio = self.config.vision_config, self.config.downsample_ratio
        rows, cols = (
            int(side // patch * ratio)
            for side, patch in zip(vision.image_size, vision.patch_size, strict=True)
        )
        return ImageLayout.one_grid(rows, cols)
