"""How the tokens of one image lie in the sequence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenGrid:
    """Tokens of one image that lie in a grid: token (y, x) is number start + y * stride + x.

    Those of a video lie in `frames` such grids, the next one `frame_stride` tokens later.
    """

    start: int
    rows: int
    cols: int
    stride: int
    frames: int = 1
    frame_stride: int = 0

    @property
    def num_tokens(self) -> int:
        return self.frames * self.rows * self.cols

    def positions(self, device: torch.device) -> Tensor:
        """[frames * rows * cols] int64, frame by frame: each token's number among its image's."""
        t = torch.arange(self.frames, device=device) * self.frame_stride + self.start
        y = torch.arange(self.rows, device=device) * self.stride
        x = torch.arange(self.cols, device=device)
        return (t[:, None, None] + y[:, None] + x).flatten()

    def by_frame(self) -> list[TokenGrid]:
        """Each frame as a grid of its own."""
        starts = [self.start + t * self.frame_stride for t in range(self.frames)]
        return [TokenGrid(start, self.rows, self.cols, self.stride) for start in starts]


@dataclass(frozen=True)
class ImageLayout:
    """How the tokens of one image, or of one video, lie in the sequence.

    Attributes:
        num_tokens: placeholders that the processor writes for the image.
        grids: the tokens that show something, ascending. What lies between them (the newline
            tokens of LLaVA-NeXT) shows nothing and goes first.
        is_video: it is a video, if only of one frame.
    """

    num_tokens: int
    grids: tuple[TokenGrid, ...]
    is_video: bool = False

    @staticmethod
    def one_grid(rows: int, cols: int) -> ImageLayout:
        return ImageLayout(rows * cols, (TokenGrid(0, rows, cols, cols),))

    @staticmethod
    def video(frames: int, rows: int, cols: int, *, after: int = 0) -> ImageLayout:
        """Frame after frame, and `after` tokens that show nothing."""
        grid = TokenGrid(0, rows, cols, cols, frames, rows * cols)
        return ImageLayout(grid.num_tokens + after, (grid,), is_video=True)
