"""Nüwa, stage 1: anchors spread over the grid, each with what is alike around it (2602.02951)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from tokenprune.method import Method
from tokenprune.ops.common.checks import check_choice
from tokenprune.ops.common.precision import wide_dtype
from tokenprune.selection import best, rows, select_tokens
from tokenprune.tokens import ReducedTokens, VisionTokens

LATE_LAYERS = tuple(range(-9, 0))  # of CLIP-L's 24, those that the official code averages
AFTER_THE_PROJECTOR = "merged after the projector"


@dataclass(kw_only=True)
class Nuwa(Method):
    r"""Keeps anchors spread over the grid, and gathers into each what is alike around it.

    The tokens of highest attention in each region of 2 x 2 cells are candidates, so that anchors
    hold the grid's shape. Anchors of high attention stay as they are; into each of the others all
    tokens flow that resemble it and lie near. Tokens may flow into several. This is the paper's
    first stage; the second, in the language model, is not built.

    Attributes:
        radius: in cells, how far away a token may lie to flow into an anchor.
        intact_from: the quantile of the anchors' attention from which they stay as they are.
        merging: "mean", weighted; or "sum" as the official code has it: the anchor whole, plus the
            others by their share. A sum is longer than a token: features that are all equal come
            out up to twice as large.
        layers: of the vision tower, those whose mean output similarity is measured on.

    Formula:
        *Candidates.* Token $i$ is one if fewer than $n$ tokens of its region of 2 x 2 cells have
        higher attention, with the smallest $n$ that gives K candidates. The anchors are the K
        candidates of highest attention $a_i$, and stay intact where $a_i$ is at least their
        quantile $\tau$ = `intact_from`.

        *Weights.* With $\bar{h}_i$ the mean of the outputs of `layers`, $p_i$ the cell of token $i$
        and $r$ = `radius`

        $$w_{ij} = \max\left(0,\; \cos(\bar{h}_i, \bar{h}_j)\right)
        \max\left(0,\; 1 - \lVert p_i - p_j \rVert / r\right), \qquad w_{ii} = 1,$$

        or $w_{ij} = 0$ for all $j \ne i$ where anchor $i$ stays intact. It comes out as

        $$y_i = \frac{\sum_j w_{ij}\, x_j}{\sum_j w_{ij}} \;\;(\text{mean}) \qquad\text{or}\qquad
        y_i = x_i + \frac{\sum_{j \ne i} w_{ij}\, x_j}{\sum_j w_{ij}} \;\;(\text{sum}).$$

        A budget of N leaves all tokens as they are.

    Cost:
        $2 K N D$ products for similarities and means, $N D$ additions for each of `layers`, and
        $N^2$ comparisons for the candidates. Memory: $K N$ per crop.

    Fails when:
        - attention sinks: each is an anchor, and stays as it is.
        - a small thing shares its region with a sink: one of the two is a candidate where the
          budget is a quarter of N or less.
        - the ground is alike far around: an anchor of low attention is a mean over a wide circle,
          and what little differs in it is gone.
        - `merging="sum"`: such anchors are about twice as long as others.
        - a tower has fewer layers than `layers` names: the method is refused until they are given.

    Faithful:
        With `Nuwa(merging="sum")` anchors equal those of the official function
        (Man-PaperRejected/Nuwa@175b7d5, LLaVA-1.5) on random inputs of even grids, and features
        agree to 1e-5, compared once by hand; nothing is recorded.
        `tests/tokenprune/test_formulas.py::test_nuwa` holds the formula. What no option lifts:
        under `tokenprune.apply` tokens merge after the projector. Of an odd grid the official code
        has no candidates in the last row or column; here their regions are smaller. In LLaVA-NeXT
        it joins the tiles into one grid first, here each is one of its own. For more than three
        quarters of N it keeps all.

    Example:
        ```python
        import torch

        import tokenprune

        torch.manual_seed(0)
        tokens = tokenprune.VisionTokens(
            torch.randn(2, 576, 64),
            grid_size=(24, 24),
            attention=torch.rand(2, 576).softmax(1),
            hidden_states={layer: torch.randn(2, 576, 64) for layer in range(-9, 0)},
        )
        reduced = tokenprune.get_method("nuwa").reduce(tokens, num_keep=112)
        assert reduced.features.shape == (2, 112, 64)
        ```
    """

    needs: ClassVar[tuple[str, ...]] = ("attention", "hidden_states")
    tower_layers: ClassVar[dict[str, tuple[int, ...]]] = {"hidden_states": LATE_LAYERS}
    merges: ClassVar[bool] = True
    uses_grid: ClassVar[bool] = True
    paper: ClassVar[str | None] = "2602.02951"
    approximates: ClassVar[str | None] = "means for sums; stage 1 alone; " + AFTER_THE_PROJECTOR
    faithful: ClassVar[str | None] = "variant"
    radius: float = 280**0.5
    intact_from: float = 0.55
    merging: str = "mean"
    layers: tuple[int, ...] = LATE_LAYERS

    def __post_init__(self) -> None:
        check_choice("merging", self.merging, ("mean", "sum"))
        if not self.radius > 0:
            raise ValueError(f"radius must be above 0, got {self.radius}")
        if not 0 <= self.intact_from <= 1:
            raise ValueError(f"intact_from must lie in [0, 1], got {self.intact_from}")
        if not self.layers:
            raise ValueError("layers must name at least one layer of the tower, got none")
        self.declare(tower_layers={"hidden_states": tuple(self.layers)})
        if self.merging == "sum":
            self.declare(approximates="stage 1 alone; " + AFTER_THE_PROJECTOR)

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        assert tokens.attention is not None  # it is in `needs`
        attention, num_tokens = tokens.attention.detach(), tokens.features.shape[1]
        choosable = candidates(attention, tokens.grid_size, num_keep)
        kept = best(attention.masked_fill(~choosable, -torch.inf), num_keep)
        result = select_tokens(tokens, kept, attention)
        if num_keep == num_tokens or not len(kept):
            return result
        weights = self._weights(tokens, kept, attention.gather(1, kept))
        shares = weights / weights.sum(2, keepdim=True)
        if self.merging == "sum":
            shares = shares.scatter(2, kept[:, :, None], 1)
        features = shares @ tokens.features.to(shares.dtype)

        strongest, slot = weights.max(1)  # [B, N]
        joined = torch.where(strongest > 0, kept.gather(1, slot), result.assignment)
        return replace(
            result,
            features=features.to(tokens.features.dtype),
            assignment=joined.scatter(1, kept, kept),
        )

    def _weights(self, tokens: VisionTokens, kept: Tensor, scores: Tensor) -> Tensor:
        """[B, K, N]: how much of each token flows into the anchors [B, K] of such attention."""
        num_tokens, dtype = tokens.features.shape[1], wide_dtype(tokens.features.dtype)
        states = tokens.of_layers("hidden_states")
        outputs = [states[layer].detach().to(dtype) for layer in self.layers]
        directions = functional.normalize(torch.stack(outputs).mean(0), dim=2)
        cells = torch.arange(num_tokens, device=kept.device)
        cols = tokens.grid_size[1]
        places = torch.stack([cells // cols, cells % cols], 1).to(dtype)
        near = (1 - torch.cdist(places, places) / self.radius).clamp(min=0)
        weights = (rows(directions, kept) @ directions.mT).relu() * near[kept]
        intact = scores >= scores.quantile(self.intact_from, dim=1, keepdim=True)
        weights = weights.masked_fill(intact[:, :, None], 0)
        return weights.scatter(2, kept[:, :, None], 1)


def candidates(attention: Tensor, grid_size: tuple[int, int], num_keep: int) -> Tensor:
    """[B, N] -> [B, N] bool: the best of each region of 2 x 2 cells, `num_keep` in all or more."""
    num_rows, cols = grid_size
    sizes = [
        min(2, num_rows - row) * min(2, cols - col)
        for row in range(0, num_rows, 2)
        for col in range(0, cols, 2)
    ]
    depth = next(n for n in (1, 2, 3, 4) if sum(min(n, size) for size in sizes) >= num_keep)
    cells = torch.arange(num_rows * cols, device=attention.device)
    regions = cells // cols // 2 * cols + cells % cols // 2
    rank = attention.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    better = (rank[:, None] < rank[:, :, None]) & (regions[:, None] == regions)
    return better.sum(2) < depth
