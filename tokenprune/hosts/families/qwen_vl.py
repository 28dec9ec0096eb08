"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: images of any size, 2 x 2 patches to a token, mRoPE."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokenprune.hosts.adapter import Adapter
from tokenprune.hosts.compat import imported, require_attributes, require_parameters
from tokenprune.hosts.layout import ImageLayout
from tokenprune.hosts.tower_of_host import self_attention_of, tower_layers
from tokenprune.hosts.videos import Videos

# Others write a video's frames as images.
WITH_VIDEOS = {
    *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"),
    "cosmos3_omni",
}
WINDOW_INDEX = "transformers.vision_utils", "get_vision_window_index"


class QwenVL(Adapter):
    """Qwen2-VL, Qwen2.5-VL, Qwen3-VL.

    A budget counts for an image, in tokens after the merger, each of 2 x 2 patches. Deepstack
    features, which Qwen3-VL adds in the language model's first layers, leave with their tokens.

    What is read of the tower is averaged over the patches that make a token. Keys and queries are
    those of a fused projection, before rotary embedding.
    """

    model_types: ClassVar[tuple[str, ...]] = (
        *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_omni_moe_thinker"),
        *("qwen3_5", "qwen3_5_moe", "cosmos3_omni", "cohere_compass"),
        *("glm4v", "glm4v_moe", "glm46v", "glmga", "glm_ocr"),
    )
    conversation_state: ClassVar[tuple[str, ...]] = ("rope_deltas",)
    positions_need_grid: ClassVar[bool] = True

    def check(self) -> None:
        super().check()
        require_attributes(self.model, "visual", "rope_deltas")
        require_attributes(self.config.vision_config, "spatial_merge_size", "patch_size")
        require_parameters(self.model.get_image_features, "image_grid_thw")
        if self.config.model_type == "qwen2_5_vl":
            imported(*WINDOW_INDEX)
        if getattr(self.config.vision_config, "deepstack_visual_indexes", None):
            require_parameters(
                self.language_model.forward, "visual_pos_masks", "deepstack_visual_embeds"
            )

    @property
    def vision_tower(self) -> nn.Module:
        return self.model.visual

    @property
    def merge_size(self) -> int:
        return self.config.vision_config.spatial_merge_size

    def sizes(
        self, arguments: Mapping[str, Any], features: Any, input_ids: Tensor | None
    ) -> Sequence[Any]:
        return [tuple(map(int, grid)) for grid in arguments["image_grid_thw"]]

    def layout(self, size: Any) -> ImageLayout:
        """`size`: (frames, rows, cols) of patches, as `image_grid_thw` holds it.

        Or (height, width) in pixels, as the processor has resized the image.
        """
        if len(size) == 2:
            patch = self.config.vision_config.patch_size
            if any(side % (patch * self.merge_size) for side in size):
                raise ValueError(
                    f"height and width must be multiples of {patch * self.merge_size} pixels, as "
                    f"the processor makes them, got {size[0]} x {size[1]}"
                )
            size = (1, size[0] // patch, size[1] // patch)
        frames, rows, cols = size
        return ImageLayout.one_grid(frames * rows // self.merge_size, cols // self.merge_size)

    @property
    def videos(self) -> QwenVideos | None:
        return QwenVideos(self) if self.config.model_type in WITH_VIDEOS else None

    @property
    def attention_layer(self) -> nn.Module:
        # Windowed layers see one window each: the last full one is asked.
        full = getattr(self.config.vision_config, "fullatt_block_indexes", None)
        return self_attention_of(tower_layers(self.vision_tower)[max(full) if full else -1])

    def projection(
        self, attention: Any, name: str
    ) -> tuple[nn.Module, Callable[[Tensor], Tensor]] | None:
        fused = getattr(attention, "qkv", None)
        third = ("queries", "keys").index(name)
        return None if fused is None else (fused, lambda output: output.chunk(3, dim=-1)[third])

    def token_values(self, values: Tensor, sizes: Sequence[Any]) -> list[Tensor]:
        # Patches come in groups of one token each.
        merged = values[0].unflatten(0, (-1, self.merge_size**2)).mean(1)
        order = self.window_order(sizes, values.device)
        if order is not None:
            merged = merged[order.argsort()]
        return list(merged.split([self.layout(size).num_tokens for size in sizes]))

    def window_order(self, sizes: Sequence[Any], device: torch.device) -> Tensor | None:
        """Qwen2.5-VL's tower runs on tokens sorted by window: [tokens] their raster numbers."""
        if self.config.model_type != "qwen2_5_vl":
            return None
        get_vision_window_index = imported(*WINDOW_INDEX)
        vision = self.config.vision_config
        order, _ = get_vision_window_index(
            torch.tensor(sizes), self.merge_size, vision.window_size, vision.patch_size
        )
        return order.to(device)


class QwenVideos(Videos):
    """Frames of 2 x 2 patches to a token, each of two pictures; Qwen3-VL writes times between."""

    adapter: QwenVL

    @property
    def offers(self) -> frozenset[str]:
        return self.adapter.offers

    def sizes(
        self, arguments: Mapping[str, Any], features: Any, input_ids: Tensor | None
    ) -> Sequence[Any]:
        return [tuple(map(int, grid)) for grid in arguments["video_grid_thw"]]

    def layout(self, size: Any) -> ImageLayout:
        """`size`: (frames, rows, cols) of patches, as `video_grid_thw` holds it."""
        frames, rows, cols = size
        merge = self.adapter.merge_size
        return ImageLayout.video(frames, rows // merge, cols // merge)

    def token_values(self, values: Tensor, sizes: Sequence[Any]) -> list[Tensor]:
        return self.adapter.token_values(values, sizes)
