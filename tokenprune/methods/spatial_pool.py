"""Control: average equal windows of the grid. Often hard to beat (arXiv 2510.07143)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenprune.method import Method
from tokenprune.ops import cluster_mean
from tokenprune.tokens import ReducedTokens, VisionTokens


@dataclass(kw_only=True)
class SpatialPool(Method):
    r"""Control: averages windows of the grid, as equal and as square as they come.

    There are exactly `num_keep`. The grid is cut into bands of rows, each band into windows. A
    window's root is its upper left token.

    Formula:
        For a grid of $H \times W$ tokens, A bands, the number that divides K if any such fits and
        makes windows most square, and $L_a = \lfloor (a+1) K / A \rfloor - \lfloor a K / A \rfloor$
        windows in band $a$,

        $$\Omega_{a,l} = \left\{(h, w) : \left\lfloor \tfrac{a H}{A} \right\rfloor \le h <
        \left\lfloor \tfrac{(a+1) H}{A} \right\rfloor,\;
        \left\lfloor \tfrac{l W}{L_a} \right\rfloor \le w <
        \left\lfloor \tfrac{(l+1) W}{L_a} \right\rfloor\right\}, \qquad
        y_{a,l} = \frac{1}{|\Omega_{a,l}|} \sum_{(h,w) \in \Omega_{a,l}} x_{h,w}.$$

    Cost:
        $N D$ additions.

    Fails when:
        - things are smaller than a window: one token among many hardly moves the mean. On the
          made-up scenes below no planted object is seen at the smallest budget.
        - text must be read: as for `downsample`.
        - the image is mostly empty: every part of it gets the same share of the budget.

    Faithful:
        A control; average pooling where windows divide the grid
        (`tests/tokenprune/test_methods.py::test_spatial_pool_is_average_pooling_where_it_divides`).
    """

    merges: ClassVar[bool] = True
    uses_grid: ClassVar[bool] = True
    paper: ClassVar[str | None] = "2510.07143"
    faithful: ClassVar[str | None] = "control"

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        features = tokens.features
        roots = window_roots(tokens.grid_size, num_keep).to(features.device)
        keep_indices = roots.unique()  # sorted
        assignment = roots.repeat(len(features), 1)
        keep_indices = keep_indices.repeat(len(features), 1)
        return ReducedTokens(
            features=cluster_mean(features, assignment, keep_indices),
            keep_indices=keep_indices,
            valid=torch.ones_like(keep_indices, dtype=torch.bool),
            assignment=assignment,
            scores=torch.zeros(keep_indices.shape, device=features.device),
            grid_size=tokens.grid_size,
        )


def window_roots(grid_size: tuple[int, int], num_windows: int) -> Tensor:
    """[N] int64: the upper left token of the window that each token lies in."""
    rows, cols = grid_size
    bands = choose_bands(grid_size, num_windows)
    roots = torch.empty(rows, cols, dtype=torch.int64)
    for band in range(bands):
        top, bottom = rows * band // bands, rows * (band + 1) // bands
        windows = num_windows * (band + 1) // bands - num_windows * band // bands
        for window in range(windows):
            left, right = cols * window // windows, cols * (window + 1) // windows
            roots[top:bottom, left:right] = top * cols + left
    return roots.flatten()


def choose_bands(grid_size: tuple[int, int], num_windows: int) -> int:
    """The number of bands that divides `num_windows` if any fits, and makes windows most square."""
    rows, cols = grid_size

    def unevenness(bands: int) -> tuple[bool, float]:
        height, width = rows / bands, cols * bands / num_windows
        return num_windows % bands != 0, abs(math.log(height / width))

    fitting = [
        bands for bands in range(1, min(rows, num_windows) + 1) if -(-num_windows // bands) <= cols
    ]
    return min(fitting, key=unevenness)
