"""GlobalCom2: an image's budget, shared over its crops by the thumbnail (arXiv 2501.05179)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from tokenprune.method import Method
from tokenprune.selection import best, select_marked
from tokenprune.tokens import ReducedTokens, VisionTokens

TEMPERATURE = 10  # of the softmax over crops, of the official code


@dataclass(kw_only=True)
class GlobalCom2(Method):
    r"""Deals the budget out to an image's crops: more where the thumbnail's class token looks.

    The B crops of the tokens are those of one image: its thumbnail, then its tiles row by row. They
    keep K tokens each on average, as whole numbers come; the result is packed. Of a tile that is
    padded in part, the rest counts as all of it.

    Attributes:
        crop_grid: (rows, cols) of the tiles; None is what the tokens say, or one row of them.
        ratio: share of the tokens that stay, in (0, 1], in place of $K / N$, which is of whole
            tokens.

    Formula:
        With $g_i$ and $\ell_{c,i}$ the class token's attention logits in the thumbnail and in tile
        $c$ of C, $\Omega_c$ the thumbnail's tokens that show the tile, and $\rho = K / N$,

        $$p_c = \operatorname{softmax}_c\!\left(\frac{1}{10} \sum_{i \in \Omega_c} g_i\right),
        \qquad K_c = \left\lfloor N \min\left(1,\; \rho \left(1 + p_c - \tfrac{1}{C}\right)\right)
        \right\rfloor.$$

        The thumbnail keeps $\operatorname{top}_K(g)$. With $\tilde g_c$ the part of $g$, enlarged
        bilinearly to the tiles' grid, that lies in tile $c$, the tile keeps

        $$\operatorname{top}_{K_c}\!\left(\frac{\ell_c}{\lVert \ell_c \rVert_2}
        + \frac{\tilde g_c}{\lVert \tilde g_c \rVert_2}\right),$$

        the lowest index among equals.

    Cost:
        A sort of N for each crop.

    Fails when:
        - there are many tiles: shares differ by at most $\rho\, p_c$, so an empty tile keeps
          nearly as much as any other.
        - a thing is too small for the thumbnail: its tile gets less, for what it is best at.
        - attention sinks: as for `fastervlm`, in the thumbnail and in tiles.
        - the question decides: it is not read.

    Faithful:
        Kept tokens and shares equal those recorded from the official code in two cases, of an image
        that fills its tiles
        (`tests/tokenprune/test_replay.py::test_every_recorded_case_of_a_known_form_is_equal`). In
        LLaVA-NeXT it is the whole model with the other tokens masked
        (`tests/tokenprune/test_official.py`); K is then a crop's equal part of the image's budget,
        and newline tokens stay beside it, as in the official code.

    Example:
        ```python
        import torch

        import tokenprune

        torch.manual_seed(0)
        tokens = tokenprune.VisionTokens(  # a thumbnail and 2 x 2 tiles
            torch.randn(5, 576, 64), grid_size=(24, 24), cls_logits=torch.randn(5, 576)
        )
        method = tokenprune.get_method("globalcom2", crop_grid=(2, 2))
        reduced = method.reduce(tokens, num_keep=24)
        print(reduced.cu_seqlens)  # where the tokens of each crop begin
        ```
    """

    needs: ClassVar[tuple[str, ...]] = ("cls_logits",)
    uses_grid: ClassVar[bool] = True
    by_crop: ClassVar[bool] = True
    paper: ClassVar[str | None] = "2501.05179"
    faithful: ClassVar[str | None] = "faithful to xuyang-liu16/GlobalCom2@96b2d00"
    crop_grid: tuple[int, int] | None = None
    ratio: float | None = None

    def __post_init__(self) -> None:
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise ValueError(f"ratio must lie in (0, 1], got {self.ratio}")

    def count(self, num_tokens: int, num_keep: int) -> None:
        """None: crops have shares of their own."""

    def shares(self, tokens: VisionTokens, num_keep: int) -> Tensor:
        """[C] float64 in [0, 1]: the share of its tokens that each tile keeps."""
        num_tokens = tokens.features.shape[1]
        ratio = num_keep / num_tokens if self.ratio is None else self.ratio
        return (ratio * self._factors(tokens)).clamp(max=1)

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        assert tokens.cls_logits is not None  # it is in `needs`
        logits, num_tokens = tokens.cls_logits.detach(), tokens.features.shape[1]
        budget = num_keep if self.ratio is None else num_tokens * self.ratio
        # All of a tile's tokens but where it is padded.
        sizes = shown_in(tokens)[1:].sum(1)
        wanted = budget * (sizes.double() / num_tokens) * self._factors(tokens)
        counts = torch.minimum(wanted, sizes).long().tolist()
        scores = torch.cat([logits[:1], self._tile_scores(tokens)])
        scores = scores.masked_fill(~shown_in(tokens), -torch.inf)
        marked = torch.zeros_like(scores, dtype=torch.bool)
        for crop, count in enumerate([int(budget), *counts]):
            marked[crop, best(scores[crop : crop + 1], count)[0]] = True
        return select_marked(tokens, marked, scores)

    def _tiles(self, tokens: VisionTokens) -> tuple[int, int]:
        """(rows, cols) of tiles; raises ValueError where the crops are not those of one image."""
        num_tiles = len(tokens.features) - 1
        grid = self.crop_grid or tokens.crop_grid or (1, num_tiles)
        if num_tiles < 0 or grid[0] * grid[1] != num_tiles:
            raise ValueError(
                f"GlobalCom2 expects the crops of one image, a thumbnail and {grid[0]} x {grid[1]} "
                f"tiles, got {num_tiles + 1} crops"
            )
        return grid

    def _factors(self, tokens: VisionTokens) -> Tensor:
        """[C] float64, what each tile's budget is multiplied by; 1 on average."""
        assert tokens.cls_logits is not None
        thumbnail = tokens.cls_logits[0].detach().double().view(tokens.grid_size)
        rows, cols = self._tiles(tokens)
        if not rows * cols:
            return thumbnail.new_zeros(0)
        parts = [
            part.sum()
            for band in thumbnail.tensor_split(rows, 0)
            for part in band.tensor_split(cols, 1)
        ]
        shares = (torch.stack(parts) / TEMPERATURE).softmax(0)
        return 1 + shares - shares.mean()

    def _tile_scores(self, tokens: VisionTokens) -> Tensor:
        """[C, N]: a tile's own logits and the thumbnail's, each as a unit vector, added."""
        assert tokens.cls_logits is not None
        thumbnail, own = tokens.cls_logits.detach().split([1, len(tokens.features) - 1])
        (rows, cols), (height, width) = self._tiles(tokens), tokens.grid_size
        if not len(own):
            return own
        shown = shown_in(tokens)[1:]
        mosaic = shown.view(rows, cols, height, width).transpose(1, 2).flatten(2).flatten(0, 1)
        size = int(mosaic.any(1).sum()), int(mosaic.any(0).sum())  # padding lies around it
        enlarged = functional.interpolate(
            thumbnail.view(1, 1, height, width), size, mode="bilinear"
        )
        canvas = own.new_zeros(mosaic.shape).masked_scatter(mosaic, enlarged)
        parts = canvas.view(rows, height, cols, width).transpose(1, 2).flatten(0, 1).flatten(1)
        own = own * shown
        return functional.normalize(own, dim=1) + functional.normalize(parts, dim=1)


def shown_in(tokens: VisionTokens) -> Tensor:
    """[B, N] bool, False where a crop is padded."""
    if tokens.shown is not None:
        return tokens.shown
    return torch.ones(tokens.features.shape[:2], dtype=torch.bool, device=tokens.features.device)
