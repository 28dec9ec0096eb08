"""Idefics3 and SmolVLM: crops of one size, pixel-shuffled; each crop counts as an image."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from tokenprune.hosts.adapter import Adapter
from tokenprune.hosts.compat import require_attributes
from tokenprune.hosts.layout import ImageLayout


class Idefics3(Adapter):
    """Idefics3, SmolVLM.

    A budget counts for a crop, the overview among them: the host does not say which crops are one
    image's.
    """

    model_types: ClassVar[tuple[str, ...]] = ("idefics3", "smolvlm")
    unit: ClassVar[str] = "crop"

    def check(self) -> None:
        super().check()
        require_attributes(self.model, "vision_model")
        require_attributes(self.config, "scale_factor")

    @property
    def language_model(self) -> nn.Module:
        return self.model.text_model

    @property
    def vision_tower(self) -> nn.Module:
        return self.model.vision_model

    def lengths(self, features: Any) -> list[int]:
        # One entry per crop or, in newer versions, per prompt with all of its crops.
        per_crop = self.layout(None).num_tokens
        total = sum(feature.shape[:-1].numel() for feature in features)
        return [per_crop] * (total // per_crop)

    def layout(self, size: Any) -> ImageLayout:
        vision = self.config.vision_config
        side = vision.image_size // vision.patch_size // self.config.scale_factor
        return ImageLayout.one_grid(side, side)
