"""Kept tokens -> the language model's width, and the pooling of video frames."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


def build_projector(vision_width: int, text_width: int) -> nn.Sequential:
    """The two-layer GELU projector, `mlp2x_gelu` in published checkpoints."""
    return nn.Sequential(
        nn.Linear(vision_width, text_width), nn.GELU(), nn.Linear(text_width, text_width)
    )


def pool_frames(features: Tensor, grid_size: tuple[int, int], stride: int) -> Tensor:
    """[B, N, D] -> [B, (rows // stride) * (cols // stride), D]: window means, as LongVA does."""
    grid = features.transpose(1, 2).unflatten(2, grid_size)
    return functional.avg_pool2d(grid, stride).flatten(2).transpose(1, 2)
