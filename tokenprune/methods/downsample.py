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
    r"""Control: resizes the grid of tokens, bilinear with antialiasing, to `num_keep` tokens.

    What encoding a smaller image is to pixels, done to tokens: a reduction after the encoder
    cannot ask for fewer pixels. Tokens are assigned to the window of `spatial_pool` that lies where
    their sample does; the filter reaches one window further.

    Formula:
        From $n$ samples to $m$, with $\sigma = n / m$, the weights are a triangle as wide as two of
        the new samples, normalized:

        $$R^{n \to m}_{o,i} \propto \max\left(0,\;
        1 - \frac{|\,i + \tfrac{1}{2} - (o + \tfrac{1}{2})\,\sigma\,|}{\sigma}\right), \qquad
        \sum_i R^{n \to m}_{o,i} = 1.$$

        A grid of $H \times W$ tokens becomes $A$ lines (`choose_bands`), line $a$ with
        $L_a = \lfloor (a+1) K / A \rfloor - \lfloor a K / A \rfloor$ tokens, K in all:

        $$y_{a,o} = \sum_{w=0}^{W-1} R^{W \to L_a}_{o,w} \sum_{h=0}^{H-1} R^{H \to A}_{a,h}\,
        x_{h,w}.$$

    Cost:
        $A N D$ products for the lines and $K W D$ within them.

    Fails when:
        - things are smaller than a window: they are averaged with what surrounds them. On the
          made-up scenes below no planted object is seen at the two smaller budgets.
        - text must be read: strokes of one token's width are blurred into the paper.
        - the language model was trained on whole tokens alone: a mean of unlike tokens lies where
          none was.

    Faithful:
        A control, no method of its own. The paper compares methods to encoding a smaller image;
        this resizes what the encoder gave. Equal to `torch.nn.functional.interpolate` where K is a
        product of a height and a width (`tests/tokenprune/test_formulas.py::test_downsample`).
    """

    merges: ClassVar[bool] = True
    uses_grid: ClassVar[bool] = True
    paper: ClassVar[str | None] = "2510.07143"
    faithful: ClassVar[str | None] = "control"

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
