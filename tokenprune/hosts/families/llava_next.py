"""LLaVA-NeXT: an overview and a mosaic of crops, each of its rows closed by a newline token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenprune.hosts.adapter import Adapter
from tokenprune.hosts.compat import (
    imported,
    require,
    require_attributes,
    require_parameters,
)
from tokenprune.hosts.layout import Crops, ImageLayout, TokenGrid
from tokenprune.hosts.videos import Videos

CROP_COUNT = "transformers.models.llava_next.modeling_llava_next", "image_size_to_num_patches"
TILES = "transformers.models.llava_next.modeling_llava_next", "get_anyres_image_grid_shape"


class LlavaNext(Adapter):
    """LLaVA-NeXT.

    A budget counts for an image, and is dealt to its overview and its mosaic of crops in proportion
    to their tokens; newline tokens show nothing and go first.

    The host's own packing, run on numbers instead of features, says where each token lies.

    Attributes:
        packs: what `pack_image_features` takes, in this order.
    """

    model_types: ClassVar[tuple[str, ...]] = ("llava_next", "llava_next_video")

    packs: ClassVar[tuple[str, ...]] = (
        "image_features",
        "image_sizes",
        "vision_feature_select_strategy",
        "image_newline",
    )

    def check(self) -> None:
        super().check()
        require_attributes(self.model, "vision_tower")
        require_attributes(self.config, "vision_feature_layer", "image_grid_pinpoints")
        require_parameters(self.model.get_image_features, "image_sizes")
        imported(*CROP_COUNT)
        imported(*TILES)
        signature = require_parameters(self.model.pack_image_features, *self.packs)
        require(
            tuple(signature.parameters)[: len(self.packs)] == self.packs,
            f"pack_image_features must take {', '.join(self.packs)} in this order, "
            f"got {', '.join(signature.parameters)}",
        )

    def sizes(
        self, arguments: Mapping[str, Any], features: Any, input_ids: Tensor | None
    ) -> Sequence[Any]:
        return [tuple(map(int, size)) for size in arguments["image_sizes"]]

    def layout(self, size: Any) -> ImageLayout:
        """`size`: (height, width) of the image in pixels, as `image_sizes` holds it."""
        side, num_crops = self.crop_side, self.num_crops(size)
        patches = torch.arange(num_crops * side * side).view(num_crops, -1, 1).double()
        numbers = self.pack(patches, size, newline=-patches.new_ones(1))[:, 0].long()
        overview = TokenGrid(0, side, side, side)
        if num_crops == 1:
            return ImageLayout(len(numbers), (overview,))
        newlines = (numbers < 0).nonzero()[:, 0].tolist()
        stride = newlines[0] + 1 - overview.num_tokens
        mosaic = TokenGrid(overview.num_tokens, len(newlines), stride - 1, stride)
        crops = self.crops(numbers, size) if self.knows_crops else None
        return ImageLayout(len(numbers), (overview, mosaic), of_crops=crops)

    def crops(self, numbers: Tensor, size: Any) -> Crops:
        """From which patch each token of an image is, crop by crop."""
        get_anyres_image_grid_shape = imported(*TILES)
        rows, cols = get_anyres_image_grid_shape(
            size, self.config.image_grid_pinpoints, self.config.vision_config.image_size
        )
        return Crops.numbered(numbers, (self.crop_side, self.crop_side), (int(rows), int(cols)))

    def token_values(self, values: Tensor, sizes: Sequence[Any]) -> list[Tensor]:
        crops = values.split([self.num_crops(size) for size in sizes])
        return [
            self.pack(image, size, newline=None) for image, size in zip(crops, sizes, strict=True)
        ]

    @property
    def offers(self) -> frozenset[str]:
        # Of PruMerge, whose official code has no form for an image of several crops.
        return super().offers - {"single_head_attention"}

    @property
    def projects(self) -> bool:
        return True

    def crop_values(self, values: Tensor, sizes: Sequence[Any]) -> list[Tensor]:
        return list(values.split([self.num_crops(size) for size in sizes]))

    @property
    def videos(self) -> PooledVideos | None:
        return PooledVideos(self) if self.config.model_type == "llava_next_video" else None

    @property
    def crop_side(self) -> int:
        return self.config.vision_config.image_size // self.config.vision_config.patch_size

    def num_crops(self, size: Any) -> int:
        image_size_to_num_patches = imported(*CROP_COUNT)
        return image_size_to_num_patches(
            size, self.config.image_grid_pinpoints, self.config.vision_config.image_size
        )

    def pack(self, crops: Tensor, size: Any, newline: Tensor | None) -> Tensor:
        """[crops, patches, D] -> [tokens, D], as the host does it."""
        strategy = self.config.vision_feature_select_strategy
        return self.model.pack_image_features([crops], [size], strategy, newline)[0][0]


class PooledVideos(Videos):
    """LLaVA-NeXT-Video's: each frame is one crop, pooled; its tokens follow each other."""

    adapter: LlavaNext
    newlines: ClassVar[int] = 0  # tokens after the last frame that show nothing

    @property
    def token_id(self) -> int:
        config = self.adapter.config
        return getattr(config, "video_token_id", None) or config.video_token_index

    @property
    def side(self) -> int:
        """Tokens along a side of a frame."""
        return self.adapter.crop_side // self.adapter.config.spatial_pool_stride

    def sizes(
        self, arguments: Mapping[str, Any], features: Any, input_ids: Tensor | None
    ) -> Sequence[Any]:
        a_frame = self.side**2
        return [(length - self.newlines) // a_frame for length in self.lengths(features)]

    def layout(self, size: Any) -> ImageLayout:
        """`size`: the number of frames."""
        return ImageLayout.video(size, self.side, self.side, after=self.newlines)
