"""VideoLLaMA 3: images and videos of any size, each merged by a factor of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from tokenprune.hosts.adapter import Adapter
from tokenprune.hosts.compat import require_parameters
from tokenprune.hosts.layout import ImageLayout
from tokenprune.hosts.videos import Videos


class VideoLlama3(Adapter):
    """VideoLLaMA 3.

    A budget counts for an image, or for a video.
    """

    model_types: ClassVar[tuple[str, ...]] = ("video_llama_3",)

    def check(self) -> None:
        super().check()
        require_parameters(self.model.get_image_features, "image_grid_thw", "image_merge_sizes")
        require_parameters(self.model.get_video_features, "video_grid_thw", "video_merge_sizes")

    @property
    def offers(self) -> frozenset[str]:
        return frozenset({"features", "text"})

    @property
    def videos(self) -> VideoLlama3Videos:
        return VideoLlama3Videos(self)

    def encoded_before(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """
        Raises:
            NotImplementedError: the processor has dropped tokens of videos already.
        """
        mask = arguments.get("video_compression_mask")
        if mask is not None and not bool(mask.all()):
            raise NotImplementedError(
                "the processor has dropped tokens that hardly change between frames; call it with "
                "use_token_compression=False"
            )
        return super().encoded_before(arguments)

    def sizes(
        self, arguments: Mapping[str, Any], features: Any, input_ids: Tensor | None
    ) -> Sequence[Any]:
        return sizes_of(arguments["image_grid_thw"], arguments["image_merge_sizes"])

    def layout(self, size: Any) -> ImageLayout:
        """`size`: (frames, rows, cols) of patches, and how many are merged along a side."""
        frames, rows, cols, merge = size
        return ImageLayout.one_grid(frames * rows // merge, cols // merge)


class VideoLlama3Videos(Videos):
    def sizes(
        self, arguments: Mapping[str, Any], features: Any, input_ids: Tensor | None
    ) -> Sequence[Any]:
        return sizes_of(arguments["video_grid_thw"], arguments["video_merge_sizes"])

    def layout(self, size: Any) -> ImageLayout:
        """`size`: (frames, rows, cols) of patches, and how many are merged along a side."""
        frames, rows, cols, merge = size
        return ImageLayout.video(frames, rows // merge, cols // merge)


def sizes_of(grids: Tensor, merges: Tensor) -> list[tuple[int, ...]]:
    return [(*grid, merge) for grid, merge in zip(grids.tolist(), merges.tolist(), strict=True)]
