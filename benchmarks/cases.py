"""Inputs of the benchmarks: random, seeded, in the sizes of the released model."""

from __future__ import annotations

import torch
from torch import Tensor


def background_anchored_inputs(
    crops: int, grid_size: tuple[int, int], width: int, num_keep: int, dtype: torch.dtype
) -> dict[str, object]:
    """Arguments of `background_anchored`; the features are a view behind a class token."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=generator).mul_(scale).to(dtype)

    rows, cols = grid_size
    tokens = normal(crops, 1 + rows * cols, width)
    return {
        "features": tokens[:, 1:],
        "cls": tokens[:, 0],
        "grid_size": grid_size,
        "dw_weight": normal(width, 1, 3, 3, scale=1 / 3),
        "pw_weight": normal(9, width, 1, 1, scale=width**-0.5),
        "pw_bias": normal(9, scale=0.1),
        "q_weight": normal(width, width, scale=width**-0.5),
        "q_bias": normal(width, scale=0.1),
        "k_weight": normal(width, width, scale=width**-0.5),
        "k_bias": normal(width, scale=0.1),
        "num_keep": num_keep,
    }
