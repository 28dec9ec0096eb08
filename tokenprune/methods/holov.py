"""HoloV: a share of the budget for every part of the image (arXiv 2510.02912)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenprune.method import Method
from tokenprune.methods.spatial_pool import window_roots
from tokenprune.ops.common.cosine import cosine_matrix
from tokenprune.selection import best, select_tokens
from tokenprune.tokens import ReducedTokens, VisionTokens


@dataclass(kw_only=True)
class HoloV(Method):
    r"""Deals the budget out to windows of the image, then keeps the best tokens of each.

    A token's score is its attention plus the variance of its similarities to the other tokens of
    its window, each divided by its mean over the image. A window's share of the budget is the
    softmax of its mean score; whole numbers come from the shares by Webster's method, so that no
    window receives more than it holds.

    Attributes:
        num_windows: parts of the image, at least 1; as square as they come.
        temperature: of the softmax, above 0; high means equal shares.

    Formula:
        For token $i$ of window $\Omega$, with attention $a_i$ and the mean
        $\mu_i$ of $\cos(x_i, x_j)$ over the other $j \in \Omega$,

        $$v_i = \frac{1}{|\Omega| - 1} \sum_{j \in \Omega,\, j \ne i}
        \left(\cos(x_i, x_j) - \mu_i\right)^2, \qquad
        s_i = \frac{a_i}{\bar{a}} + \frac{v_i}{\bar{v}},$$

        where a bar is the mean over the crop. With $\tau$ = `temperature`

        $$\pi_\Omega = \operatorname{softmax}_\Omega\!\left(\frac{1}{\tau\,|\Omega|}
        \sum_{i \in \Omega} s_i\right), \qquad
        S = \operatorname{top}_K\left(\frac{\pi_{\Omega(i)}}{\operatorname{rank}_{\Omega(i)}(i)
        + \tfrac{1}{2}}\right),$$

        with ranks by $s_i$ within the window, from 0: Webster's divisors.

    Cost:
        $N^2 D / G$ products for G windows, and G sorts of $N / G$.

    Fails when:
        - all that matters lies in one window: its share is bounded, whatever the rest holds.
        - windows are empty ground: mean scores differ little, so shares are nearly equal and each
          of them gets tokens. The measured rows keep fewer object tokens than `fastervlm`.
        - an object lies on a border between windows: both see half of it.
        - attention sinks: as for `fastervlm`.

    Faithful:
        The official code cuts runs of the raster order instead of windows, deals the budget out in
        proportion (no softmax), scales attention by 1,000 and the variance by 0.09 within each run,
        and keeps the tokens of a run by attention alone; a run's surplus becomes rows of zeros. The
        method does not reproduce its choice, and no recorded output is claimed.
    """

    needs: ClassVar[tuple[str, ...]] = ("attention",)
    uses_grid: ClassVar[bool] = True
    paper: ClassVar[str | None] = "2510.02912"
    faithful: ClassVar[str | None] = "variant"
    approximates: ClassVar[str | None] = (
        "square windows, softmax shares and another score inside a window"
    )
    num_windows: int = 16
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.num_windows < 1:
            raise ValueError(f"num_windows must be at least 1, got {self.num_windows}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        assert tokens.attention is not None  # it is in `needs`
        features, attention = tokens.features.detach(), tokens.attention.detach()
        roots = window_roots(tokens.grid_size, min(self.num_windows, features.shape[1]))
        variance, scores = torch.empty_like(attention), torch.empty_like(attention)
        windows = [(roots == root).nonzero().flatten() for root in roots.unique().tolist()]
        for window in windows:
            variance[:, window] = similarity_variance(features[:, window]).to(variance.dtype)
        scores = relative(attention) + relative(variance)

        means = torch.stack([scores[:, window].mean(1) for window in windows], 1)
        shares = (means / self.temperature).softmax(1)
        priority = torch.empty_like(scores)
        for place, window in enumerate(windows):
            ranking = scores[:, window].argsort(dim=1, descending=True, stable=True)
            priority[:, window] = shares[:, place, None] / (ranking.argsort(dim=1) + 0.5)
        return select_tokens(tokens, best(priority, num_keep), scores)


def similarity_variance(features: Tensor) -> Tensor:
    """[B, M, D] -> [B, M]: how much the cosine similarities to the others vary."""
    similarity = cosine_matrix(features)
    num_others = max(features.shape[1] - 1, 1)
    similarity.diagonal(dim1=1, dim2=2).zero_()
    mean = similarity.sum(2, keepdim=True) / num_others
    deviation = (similarity - mean).square()
    deviation.diagonal(dim1=1, dim2=2).zero_()
    return deviation.sum(2) / num_others


def relative(values: Tensor) -> Tensor:
    """[B, N] not negative, divided by the mean; zero where all are."""
    mean = values.mean(1, keepdim=True)
    return torch.where(mean > 0, values / mean, 0)
