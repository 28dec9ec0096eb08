"""LLaVA-OneVision: LLaVA-NeXT's layout, its mosaic shrunk to a budget of crops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from tokenprune.hosts.compat import Call, require_attributes, require_parameters
from tokenprune.hosts.families.llava_next import LlavaNext, PooledVideos


class LlavaOnevision(LlavaNext):
    """LLaVA-OneVision.

    A budget counts for an image, and is dealt to its overview and its mosaic of crops in proportion
    to their tokens; newline tokens show nothing and go first. Of several images in a prompt each is
    its overview alone.

    A mosaic of more tokens than the host allows is shrunk by bilinear interpolation: what is read
    of the tower is shrunk with it.
    """

    model_types: ClassVar[tuple[str, ...]] = ("llava_onevision",)
    packs: ClassVar[tuple[str, ...]] = (
        "image_features",
        "image_sizes",
        "image_newline",
        "vision_aspect_ratio",
    )

    def check(self) -> None:
        super().check()
        require_parameters(self.model.get_image_features, "batch_num_images")
        require_attributes(self.config, "vision_aspect_ratio")

    def sizes(
        self, arguments: Mapping[str, Any], features: Any, input_ids: Tensor | None
    ) -> Sequence[Any]:
        sizes = super().sizes(arguments, features, input_ids)
        counts = arguments.get("batch_num_images")
        return sizes if counts is None else self.sizes_in_prompts(sizes, counts)

    def sizes_in_prompts(self, sizes: Sequence[Any], num_images: Sequence[int]) -> Sequence[Any]:
        alone = [int(count) == 1 for count in num_images for _ in range(int(count))]
        return [size if one else None for size, one in zip(sizes, alone, strict=True)]

    @property
    def videos(self) -> OnevisionVideos | None:
        # Before 5.18 the newline comes after get_video_features.
        names = Call.parameters(self.model.get_video_features)
        return OnevisionVideos(self) if "pixel_values_videos" in names else None

    @property
    def knows_crops(self) -> bool:
        return False  # a token of a shrunk mosaic is of several patches

    def num_crops(self, size: Any) -> int:
        """`size` None: an image that is not alone in its prompt."""
        return 1 if size is None else super().num_crops(size)

    def pack(self, crops: Tensor, size: Any, newline: Tensor | None) -> Tensor:
        return self.model.pack_image_features(
            [crops], [size], newline, self.config.vision_aspect_ratio
        )[0][0]


class OnevisionVideos(PooledVideos):
    """Each frame is one crop, shrunk to half its side; a newline token closes the video."""

    newlines: ClassVar[int] = 1

    @property
    def side(self) -> int:
        return (self.adapter.crop_side + 1) // 2
