"""Idefics2: a resampler looks at the patches, and gives each image as many tokens."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from tokenprune.hosts.adapter import Adapter
from tokenprune.hosts.compat import require_attributes
from tokenprune.hosts.layout import ImageLayout
from tokenprune.method import OF_TOWER, Method


class Idefics2(Adapter):
    """Idefics2.

    A budget counts for an image, or for a crop where the processor splits images: the host does not
    say which crops are one image's. A token stands for no place, so that methods that use a grid,
    or the tower's attention, are refused.
    """

    model_types: ClassVar[tuple[str, ...]] = ("idefics2",)
    unit: ClassVar[str] = "crop"

    def check(self) -> None:
        super().check()
        require_attributes(self.config.perceiver_config, "resampler_n_latents")

    @property
    def offers(self) -> frozenset[str]:
        return frozenset({"features", "text"})

    def why_not(self, method: Method) -> str | None:
        if method.uses_grid or any(name in OF_TOWER for name in method.needs):
            return "needs to know where tokens lie, those of a resampler stand for no place"
        return None

    @property
    def language_model(self) -> nn.Module:
        return self.model.text_model

    def lengths(self, features: Any) -> list[int]:
        # One entry per prompt with all of its images; in older versions one for the whole batch.
        per_image = self.layout(None).num_tokens
        total = sum(feature.shape[:-1].numel() for feature in features)
        return [per_image] * (total // per_image)

    def layout(self, size: Any) -> ImageLayout:
        return ImageLayout.one_grid(1, self.config.perceiver_config.resampler_n_latents)
