"""Control: a smaller picture of the tokens. It often wins (arXiv 2510.07143)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenprune.method import Method
from tokenprune.methods.spatial_pool import choose_bands, window_roots
from tokenprune.ops.common.precision import wide_dtype
from tokenprune.tokens import ReducedTokens, VisionTokens


@dataclass(kw_only=True)
class Downsample(Method):
    """Control: resizes the grid of tokens, bilinear with antialiasing, to `num_keep` tokens.

    What encoding a smaller image is to pixels, done to tokens: a reduction after the encoder
    cannot ask for fewer pixels. Where `num_keep` is no product of a height and a width, rows of the
    small grid differ by one in length. Tokens are assigned to the window of `spatial_pool` that
    lies where their sample does; the filter reaches one window further.
    """

    merges: ClassVar[bool] = True
    uses_grid: ClassVar[bool] = True
    paper: ClassVar[str | None] = "2510.07143"

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        features = tokens.features
        bands = choose_bands(tokens.grid_size, num_keep)
        grid = features.unflatten(1, tokens.grid_size).to(wide_dtype(features.dtype))
        rows, cols = tokens.grid_size
        lines = torch.einsum("or,brcd->obcd", resize_weights(rows, bands).to(grid), grid)
        resized = []
        for band, line in enumerate(lines):
            length = num_keep * (band + 1) // bands - num_keep * band // bands
            resized.append(resize_weights(cols, length).to(grid) @ line)
        roots = window_roots(tokens.grid_size, num_keep).to(features.device)
        keep_indices = roots.unique().repeat(len(features), 1)
        return ReducedTokens(
            features=torch.cat(resized, dim=1).to(features.dtype),
            keep_indices=keep_indices,
            valid=torch.ones_like(keep_indices, dtype=torch.bool),
            assignment=roots.repeat(len(features), 1),
            scores=torch.zeros(keep_indices.shape, device=features.device),
            grid_size=tokens.grid_size,
        )


def resize_weights(size: int, smaller: int) -> Tensor:
    """[smaller, size] float64: what each of `size` samples counts in each of the smaller number.

    Bilinear with antialiasing: a triangle as wide as two of the new samples. Written out, because
    torch's own is wrong for a width of 1 (seen in 2.13 on CPUs).
    """
    step = size / smaller
    centers = (torch.arange(smaller, dtype=torch.float64) + 0.5) * step
    places = torch.arange(size, dtype=torch.float64) + 0.5
    weights = (1 - (places - centers[:, None]).abs() / step).clamp(min=0)
    return weights / weights.sum(1, keepdim=True)
