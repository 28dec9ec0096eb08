"""How the tokens of one image lie in the sequence."""

from __future__ import annotations

from dataclasses import dataclass, field

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


@dataclass(frozen=True, eq=False)
class Crops:
    """The vision tower's crops of one image, its thumbnail first.

    Attributes:
        places: [C, N] int64, the number of each patch's token among those of the image; -1 where
            the crop shows padding, which the host cuts away.
        grid_size: (rows, cols) of a crop's patches.
        tiles: (rows, cols) of the crops after the first.
    """

    places: Tensor
    grid_size: tuple[int, int]
    tiles: tuple[int, int] = (0, 0)

    @staticmethod
    def numbered(numbers: Tensor, grid_size: tuple[int, int], tiles: tuple[int, int]) -> Crops:
        """`numbers` [T] int64: which patch each of an image's tokens is, crop by crop; -1: none."""
        num_crops, (rows, cols) = 1 + tiles[0] * tiles[1], grid_size
        places = numbers.new_full((num_crops * rows * cols,), -1)
        tokens = (numbers >= 0).nonzero()[:, 0]
        places[numbers[tokens]] = tokens
        return Crops(places.view(num_crops, rows * cols), grid_size, tiles)


@dataclass(frozen=True)
class ImageLayout:
    """How the tokens of one image, or of one video, lie in the sequence.

    Attributes:
        num_tokens: placeholders that the processor writes for the image.
        grids: the tokens that show something, ascending. What lies between them (the newline
            tokens of LLaVA-NeXT) shows nothing and goes first.
        is_video: it is a video, if only of one frame.
        of_crops: where the tower's crops lie in it; None for an image that is one crop.
    """

    num_tokens: int
    grids: tuple[TokenGrid, ...]
    is_video: bool = False
    of_crops: Crops | None = field(default=None, compare=False)

    @property
    def crops(self) -> Crops:
        """The tower's crops of the image.

        Raises:
            NotImplementedError: a video, or several grids of which the adapter says nothing.
        """
        if self.of_crops is not None:
            return self.of_crops
        if self.is_video or len(self.grids) > 1:
            raise NotImplementedError("a video has no crops that share its budget")
        (grid,) = self.grids
        return Crops(grid.positions(torch.device("cpu"))[None], (grid.rows, grid.cols))

    @staticmethod
    def one_grid(rows: int, cols: int) -> ImageLayout:
        return ImageLayout(rows * cols, (TokenGrid(0, rows, cols, cols),))

    @staticmethod
    def video(frames: int, rows: int, cols: int, *, after: int = 0) -> ImageLayout:
        """Frame after frame, and `after` tokens that show nothing."""
        grid = TokenGrid(0, rows, cols, cols, frames, rows * cols)
        return ImageLayout(grid.num_tokens + after, (grid,), is_video=True)
