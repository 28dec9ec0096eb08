"""Families that take videos, with videos of unequal length and size."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..hosts import HOSTS, IMAGE, VIDEO, Host
from .any_size import llava_next_video
from .grids_of_patches import cosmos3_omni, qwen3_vl_moe, video_llama_3
from .recurrent import qwen3_5, qwen3_5_moe

GRIDS = [(3, 8, 4), (2, 4, 6), (4, 4, 4), (1, 8, 6)]  # frames, rows and columns of patches


def of_patches(host: Host, *, by_frame: bool) -> Host:
    """Qwen's: all patches in one list; Qwen3-VL writes a time before each frame but the first."""
    width = host.images([1])["pixel_values"].shape[1]

    def videos(counts: list[int]) -> dict[str, Any]:
        grid = torch.tensor([GRIDS[i % len(GRIDS)] for i in range(sum(counts))])
        pixels = torch.randn(int(grid.prod(1).sum()), width)
        return {"pixel_values_videos": pixels, "video_grid_thw": grid}

    def runs(given: dict[str, Any]) -> list[list[int]]:
        grids = given["video_grid_thw"].tolist() if given else []
        return [
            [rows * cols // 4] * frames if by_frame else [frames * rows * cols // 4]
            for frames, rows, cols in grids
        ]

    return replace(host, videos=videos, runs=runs, extra=of_both)


def of_both(ids: Tensor) -> dict[str, Tensor]:
    return {"mm_token_type_ids": (ids == IMAGE).int() + 2 * (ids == VIDEO).int()}


def of_frames(host: Host, tokens: Callable[[int], int]) -> Host:
    """LLaVA's: [videos, frames, 3, H, W]."""

    def videos(counts: list[int]) -> dict[str, Any]:
        return {"pixel_values_videos": torch.randn(sum(counts), 3, 3, 56, 56)}

    def runs(given: dict[str, Any]) -> list[list[int]]:
        pixels = given.get("pixel_values_videos", [])
        return [[tokens(len(video))] for video in pixels]

    return replace(host, videos=videos, runs=runs)


@functools.cache
def with_videos(name: str) -> Host:
    torch.manual_seed(0)
    return BUILD[name]()


def merged_once(host: Host) -> Host:
    """VideoLLaMA 3: videos are merged 2 x 2, images here not at all."""
    made = of_patches(host, by_frame=False)

    def videos(counts: list[int]) -> dict[str, Any]:
        assert made.videos is not None
        given = made.videos(counts)
        return {**given, "video_merge_sizes": torch.full((sum(counts),), 2)}

    return replace(made, videos=videos, extra=lambda ids: {})


PROMPTS = {
    "one video": [[5, -1, 4]],
    "two videos": [[5, -1, 4, -1, 6]],
    "a batch": [[5, -1, 4, -1, 6], [9, -1, 3]],
    "images and videos": [[5, 0, 4, -1, 6], [9, 0, 3, -1, -1]],
}
BUILD: dict[str, Callable[[], Host]] = {
    "qwen2_vl": lambda: of_patches(HOSTS["qwen2_vl"](), by_frame=False),
    "qwen2_5_vl": lambda: of_patches(HOSTS["qwen2_5_vl"](), by_frame=False),
    "qwen3_vl": lambda: of_patches(HOSTS["qwen3_vl"](), by_frame=True),
    "qwen3_vl_moe": lambda: of_patches(qwen3_vl_moe(), by_frame=True),
    "qwen3_5": lambda: of_patches(qwen3_5(), by_frame=True),
    "qwen3_5_moe": lambda: of_patches(qwen3_5_moe(), by_frame=True),
    "cosmos3_omni": lambda: of_patches(cosmos3_omni(), by_frame=True),
    "llava_onevision": lambda: of_frames(HOSTS["llava_onevision"](), lambda n: n * 4 + 1),
    "llava_next_video": lambda: of_frames(llava_next_video(), lambda n: n * 4),
    "video_llama_3": lambda: merged_once(video_llama_3()),
}
