"""How the tokens of one image lie in the sequence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenGrid:
    """Tokens of one image that lie in a grid: token (y, x) is number start + y * stride + x."""

    start: int
    rows: int
    cols: int
    stride: int

    @property
    def num_tokens(self) -> int:
        return self.rows * self.cols

    def positions(self, device: torch.device) -> Tensor:
        """[rows * cols] int64, raster order: each token's number among its image's tokens."""
        y = torch.arange(self.rows, device=device) * self.stride + self.start
        return (y[:, None] + torch.arange(self.cols, device=device)).flatten()


@dataclass(frozen=True)
class ImageLayout:
    """How the tokens of one image lie in the sequence.

    Attributes:
        num_tokens: placeholders that the processor writes for the image.
        grids: the tokens that show something, ascending. What lies between them (the newline
            tokens of LLaVA-NeXT) shows nothing and goes first.
    """

    num_tokens: int
    grids: tuple[TokenGrid, ...]

    @staticmethod
    def one_grid(rows: int, cols: int) -> ImageLayout:
        return ImageLayout(rows * cols, (TokenGrid(0, rows, cols, cols),))
