"""HoloV: a share of the budget for every part of the image (arXiv 2510.02912)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from tokenprune.method import Method
from tokenprune.ops.common.cosine import cosine_matrix
from tokenprune.selection import best, select_tokens
from tokenprune.tokens import ReducedTokens, VisionTokens

ATTENTION_SCALE, VARIANCE_SCALE = 1000, 0.09  # of the official code
SMALLEST = 1e-6  # added to what divides


@dataclass(kw_only=True)
class HoloV(Method):
    r"""Deals the budget out to runs of the raster order, then keeps the best tokens of each.

    A run's share is in proportion to its mean score: the attention of its tokens, and how much
    their similarities to each other vary. Inside a run attention alone decides.

    Attributes:
        num_windows: runs, at least 1. None: $\max(1, \lfloor \frac{16 N}{9 K} \rfloor)$, as the
            official code does with Qwen2.5-VL.
        official: a share above what its run holds is lost, and leaves slots that are not valid; by
            default it goes to the other runs, so that exactly K tokens stay.

    Formula:
        The raster order is cut into P = `num_windows` runs of equal length, the first $N \bmod P$
        one token longer. For token $i$ of run $\Omega$ of $n$ tokens, with attention $a_i$, its
        similarities $s_{ij} = \cos(x_i, x_j)$ for $j \ne i$, $s_{ii} = 0$, and their mean
        $\mu_i = \frac{1}{n-1} \sum_{j} s_{ij}$,

        $$v_i = \frac{1}{n - 1} \sum_{j \in \Omega} (s_{ij} - \mu_i)^2, \qquad
        r_\Omega = \frac{1}{n} \sum_{i \in \Omega} \left(1000\, a_i
        + 0.09\, v_i\, \frac{1000\, \bar a}{\bar v}\right), \qquad
        w_\Omega = \frac{r_\Omega}{\sum_{\Omega'} r_{\Omega'}},$$

        where a bar is the mean over the run. Run $\Omega$ keeps its $\lfloor w_\Omega K \rfloor$
        tokens of highest attention; what is left of K goes one each to the runs of largest $w$.

    Cost:
        $N^2 D / P$ products for P runs, and P sorts of $N / P$.

    Fails when:
        - all that matters lies in one run: its share is bounded, whatever the rest holds.
        - runs are empty ground: mean scores differ little, so shares are nearly equal and each of
          them gets tokens.
        - an object is tall: a run is a few rows, so it lies in many and competes in each.
        - attention sinks: as for `fastervlm`, and they raise their run's share besides.

    Faithful:
        The kept tokens equal those recorded from the official code in four cases
        (`tests/tokenprune/test_replay.py::test_every_recorded_case_of_a_known_form_is_equal`), in
        one of them with `official=True`: there a share exceeds its run, and the official code fills
        up with rows of zeros. The official rows come run by run, here in raster order.
    """

    needs: ClassVar[tuple[str, ...]] = ("attention",)
    paper: ClassVar[str | None] = "2510.02912"
    faithful: ClassVar[str | None] = "faithful to obananas/HoloV@1d2e65e"
    approximates: ClassVar[str | None] = (
        "a share above what its run holds goes to other runs, not to rows of zeros"
    )
    num_windows: int | None = 16
    official: bool = False

    def __post_init__(self) -> None:
        if self.num_windows is not None and self.num_windows < 1:
            raise ValueError(f"num_windows must be at least 1, got {self.num_windows}")
        if self.official:
            self.declare(approximates=None)

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        assert tokens.attention is not None  # it is in `needs`
        attention = tokens.attention.detach()
        lengths = run_lengths(attention.shape[1], num_keep, self.num_windows)
        runs = attention.split(lengths, 1)
        parts = zip(tokens.features.detach().split(lengths, 1), runs, strict=True)
        shares = torch.stack([run_score(*part) for part in parts], 1)
        shares = shares / (shares.sum(1, keepdim=True) + SMALLEST)
        by_share = shares.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        quotas = (shares * num_keep).long()
        left = num_keep - quotas.sum(1, keepdim=True)
        quotas = quotas + left // len(runs) + (by_share < left % len(runs))

        turns = []  # 0 for what a quota keeps; then run by run, a token each, largest share first
        for run, quota, place in zip(runs, quotas.T, by_share.T, strict=True):
            rank = run.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
            beyond = rank - quota[:, None]
            turns.append(torch.where(beyond < 0, 0, 1 + place[:, None] + beyond * len(runs)))
        turn = torch.cat(turns, 1)
        result = select_tokens(tokens, best(-turn, num_keep), attention)
        if not self.official:
            return result
        valid = turn.gather(1, result.keep_indices) == 0
        return replace(
            result,
            features=result.features * valid[:, :, None],
            valid=valid,
            scores=result.scores.masked_fill(~valid, -torch.inf),
        )


def run_lengths(num_tokens: int, num_keep: int, num_windows: int | None) -> list[int]:
    """Tokens of each run."""
    if num_windows is None:
        num_windows = max(1, 16 * num_tokens // (9 * num_keep))
    num_runs = min(num_windows, num_tokens)
    shorter, longer = divmod(num_tokens, num_runs)
    return [shorter + (run < longer) for run in range(num_runs)]


def run_score(features: Tensor, attention: Tensor) -> Tensor:
    """[B, n, D] and [B, n] of a run -> [B], the mean of its tokens' scores."""
    num_others = max(features.shape[1] - 1, 1)
    similarity = cosine_matrix(features)
    similarity.diagonal(dim1=1, dim2=2).zero_()
    mean = similarity.sum(2, keepdim=True) / num_others
    variance = (similarity - mean).square().sum(2) / num_others
    attention = ATTENTION_SCALE * attention.to(variance.dtype)
    scale = attention.abs().mean(1) / (variance.mean(1) + SMALLEST)
    return attention.mean(1) + VARIANCE_SCALE * scale * variance.mean(1)
