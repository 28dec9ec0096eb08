"""Greedy selection on plain tensors: one loop, and for each objective what it keeps of the past."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from tokenprune.ops.common.cosine import WeightedRows, cosine_distance, cosine_matrix, rounding_of
from tokenprune.ops.common.precision import BLOCK_CROPS, wide_dtype, without_autocast

BLOCK_ROWS = 128  # of similarities at a time, so that they stay in the cache
FIRST_GAINS = 32  # that are computed again in each step, most often enough


@without_autocast
@torch.no_grad()
def greedy_order(
    features: Tensor,
    weights: Tensor | None,
    objective: str,
    num_keep: int,
    mmr_lambda: float,
    parallel_k: int,
) -> tuple[Tensor, Tensor]:
    """The tokens of each crop as they are chosen, and the rank that chose each.

    Args:
        features: [B, N, D].
        weights: [B, N], what the objective weighs tokens by; None for 1.
        objective: a key of `STATISTICS`.
        num_keep: K, 1 to N.
        mmr_lambda, parallel_k: of "mmr".

    Returns:
        ([B, K] int64, [B, K] of the wide dtype).
    """
    batch, num_tokens, _ = features.shape
    dtype = wide_dtype(features.dtype)
    weights = features.new_ones((), dtype=dtype) if weights is None else weights.to(dtype)
    weights = weights.expand(batch, num_tokens)
    order = torch.empty(batch, num_keep, dtype=torch.int64, device=features.device)
    values = features.new_empty(batch, num_keep, dtype=dtype)
    statistic = STATISTICS[objective]
    # One memory for all crops: what is new to the process is slow to touch.
    size = min(batch, statistic.crops_at_once)
    scratch = features.new_empty(size, num_tokens, num_tokens, dtype=dtype)
    for start in range(0, batch, statistic.crops_at_once):
        some = slice(start, start + statistic.crops_at_once)
        crops = Crops(features[some], weights[some], scratch, num_keep, mmr_lambda)
        _fill_order(statistic(crops), order[some], values[some], parallel_k)
    return order, values


def _fill_order(running: Statistic, order: Tensor, values: Tensor, parallel_k: int) -> None:
    """Writes `order` and `values`, [B, K], `parallel_k` columns at a time."""
    num_keep = order.shape[1]
    for start in range(0, num_keep, parallel_k):
        stop = min(start + parallel_k, num_keep)
        tokens, ranks = order[:, start:stop], values[:, start:stop]
        if stop - start == 1:
            torch.max(running.rank, 1, keepdim=True, out=(ranks, tokens))  # the first of equals
        else:
            best = running.rank.sort(dim=1, descending=True, stable=True)
            ranks[:], tokens[:] = (found[:, : stop - start] for found in best)
        if stop < num_keep:
            running.take(tokens, ranks)
            running.rank.scatter_(1, order[:, :stop], -torch.inf)


class Crops(NamedTuple):
    """A few crops, and what is asked of them.

    Attributes:
        features: [B, N, D].
        weights: [B, N] of the wide dtype.
        scratch: [B or more, N, N] of the wide dtype, to write to.
        num_keep: K.
        mmr_lambda: of "mmr".
    """

    features: Tensor
    weights: Tensor
    scratch: Tensor
    num_keep: int
    mmr_lambda: float

    def rows(self, weights: Tensor) -> WeightedRows:
        """Of w_i cos(f_i, f_j) w_j, as they are asked for."""
        # Most tokens that will be kept are among those that rank highest at first.
        return WeightedRows(self.features, weights, self.scratch, self.num_keep * 5 // 4)


class Statistic(ABC):
    """What is known of the tokens chosen so far, for a few crops.

    Attributes:
        crops_at_once: crops whose steps are taken together.
        rank: [B, N] of the wide dtype; the token of the largest is chosen next. The loop sets those
            of chosen tokens to -inf.
    """

    crops_at_once: ClassVar[int] = BLOCK_CROPS
    rank: Tensor

    @abstractmethod
    def __init__(self, crops: Crops) -> None: ...

    @abstractmethod
    def take(self, tokens: Tensor, values: Tensor) -> None:
        """Brings the rank up to date after [B, P] tokens were chosen by their ranks, `values`."""


class MaxMin(Statistic):
    """The distance of each token to the nearest chosen one."""

    def __init__(self, crops: Crops) -> None:
        self.similarity = cosine_matrix(crops.features, crops.scratch)
        self.similarity.diagonal(dim1=1, dim2=2).fill_(-1)  # none is near to itself
        self.crops = torch.arange(len(self.similarity), device=self.similarity.device)
        self.rank = cosine_distance(self.similarity.amax(2))  # of the first: to any other
        self.chosen = False

    def take(self, tokens: Tensor, values: Tensor) -> None:
        to_best = cosine_distance(self.similarity[self.crops, tokens[:, 0]])
        self.rank = to_best.minimum(self.rank) if self.chosen else to_best
        self.chosen = True


class Determinant(Statistic):
    """What each token would multiply the determinant by, by incremental Cholesky."""

    def __init__(self, crops: Crops) -> None:
        weights = crops.weights
        self.kernel = crops.rows(weights)
        self.rank = weights.square()
        self.nothing = rounding_of(weights.dtype) * self.rank
        self.factor = weights.new_empty(len(weights), crops.num_keep, weights.shape[1])
        self.crops = torch.arange(len(weights), device=weights.device)
        self.chosen = 0

    def take(self, tokens: Tensor, values: Tensor) -> None:
        row, earlier = self.kernel.at(tokens, self.rank), self.factor[:, : self.chosen]
        at_best = earlier[self.crops, :, tokens[:, 0]]
        row = row[:, None].baddbmm_(at_best[:, None], earlier, alpha=-1)[:, 0]
        # A token in the span of those before it brings nothing, and removes nothing.
        row.mul_(values.rsqrt().nan_to_num_(0, posinf=0))
        self.factor[:, self.chosen] = row
        self.chosen += 1
        self.rank.addcmul_(row, row, value=-1)
        self.rank.masked_fill_(self.rank <= self.nothing, 0)


class Coverage(Statistic):
    """How far each token is covered; the rank is what a token would add to that, or a bound of it.

    Gains never grow, in floating point neither, since all that is done to a row is monotone. So a
    gain computed earlier bounds the present one: a few of the largest bounds are looked at again,
    and then those that reach the largest gain found. Among all these is the first of equals.
    """

    crops_at_once: ClassVar[int] = 1  # how many gains a step needs differs between crops

    def __init__(self, crops: Crops) -> None:
        self.weights = crops.weights[0]
        if (self.weights < 0).any():
            raise ValueError(f"weights must not be negative, got {float(self.weights.min())}")
        self.similarity = cosine_matrix(crops.features, crops.scratch)[0]
        self.covered = torch.zeros_like(self.weights)
        self.rank = torch.empty_like(crops.weights)
        self._renew(torch.arange(len(self.covered), device=self.covered.device))
        self.left = len(self.covered)

    def take(self, tokens: Tensor, values: Tensor) -> None:
        bounds, token = self.rank[0], int(tokens)
        bounds[token] = -torch.inf
        self.left -= 1
        torch.maximum(self.covered, self.similarity[token], out=self.covered)
        some = bounds.topk(min(FIRST_GAINS, self.left)).indices
        self._renew(some)
        self._renew((bounds >= bounds[some].amax()).nonzero()[:, 0])

    def _renew(self, tokens: Tensor) -> None:
        """Computes the ranks of [M] tokens."""
        for some in tokens.split(BLOCK_ROWS):
            added = self.similarity.index_select(0, some).sub_(self.covered).clamp_(min=0)
            gains = added.sum(1).mul_(self.weights.index_select(0, some))
            self.rank[0].index_copy_(0, some, gains)


class MMR(Statistic):
    """The likeness of each token to the most similar chosen one, against its relevance."""

    def __init__(self, crops: Crops) -> None:
        self.relevance = crops.mmr_lambda * crops.weights
        self.diversity = 1 - crops.mmr_lambda
        self.cosines = crops.rows(torch.ones_like(crops.weights))
        self.likeness = torch.full_like(crops.weights, -torch.inf)
        self.rank = self.relevance.clone()

    def take(self, tokens: Tensor, values: Tensor) -> None:
        for token in tokens.split(1, dim=1):
            row = self.cosines.at(token, self.rank)
            self.likeness = torch.maximum(self.likeness, row)
        self.rank = self.relevance - self.diversity * self.likeness


STATISTICS: dict[str, type[Statistic]] = {
    "max_min": MaxMin,
    "dpp": Determinant,
    "coverage": Coverage,
    "mmr": MMR,
}
