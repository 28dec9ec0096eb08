"""PruneSID: groups of one meaning, and what repeats in each suppressed (arXiv 2603.09480)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from tokenprune.method import Method
from tokenprune.ops.common.cosine import cosine_matrix
from tokenprune.ops.common.precision import BLOCK_CROPS
from tokenprune.selection import select_tokens
from tokenprune.tokens import ReducedTokens, VisionTokens

EXACT = "an exact decomposition, not a randomized one"


@dataclass(kw_only=True)
class PruneSID(Method):
    r"""Groups tokens by principal components, keeps of each group the important ones that differ.

    Principal semantic components analysis makes a group of each component; non-maximum suppression
    within a group puts tokens that repeat a more important one behind all others; each group gets a
    part of the budget by how many of its tokens do not repeat.

    Attributes:
        keep_cls: the class token comes out too, as an extra row beside the budget. The official
            code counts it: its budget is K + 1.

    Formula:
        With $M = K + 1$ under `keep_cls`, else $M = K$, and $\sigma_i$ the sigmoid of $x_i$ less
        its mean over the D numbers, let $v_1, v_2, \ldots \in \mathbb{R}^N$ be the eigenvectors of
        $\sigma_i^\top \sigma_j$ by falling eigenvalue. With $G = \max(1, \lfloor M / 4 \rfloor)$
        groups, token $i$ belongs to

        $$g(i) = \arg\max_{c \le G} |v_{c,i}|.$$

        *Suppression.* In order of falling attention, token $i$ survives unless a survivor $j$ of
        its group has

        $$\cos(x_i, x_j) > \frac{M}{32} \cdot \frac{2}{N (N - 1)} \sum_{k < l} \cos(x_k, x_l).$$

        *Quotas.* With $n_c$ tokens and $m_c$ survivors in group $c$, bounds are
        $l_c = \min(1, n_c)$ and $u_c = \min(m_c, 5 \lceil M / 64 \rceil)$; while
        $\sum_c u_c < \min(M, N)$, every $u_c$ grows by 1, up to $n_c$. With
        $F = K - \sum_c l_c$ and rounding to the nearest even number among equals,

        $$q_c = \min\left(u_c,\; l_c + \left[F \frac{\sum_{b \le c} m_b}{\sum_b m_b}\right]
        - \left[F \frac{\sum_{b < c} m_b}{\sum_b m_b}\right]\right),$$

        and what is left of K fills the groups up to $u_c$, those with most survivors first. Each
        group keeps its $q_c$ best, survivors before the others, each by attention.

    Cost:
        $2 N^2 D$ products for two matrices and about $9 N^3$ in float64 for the eigenvectors, which
        is the larger part; a few rounds of $N^2$ comparisons. Memory: some ten $N^2$ per crop in
        work, at most 16 crops at a time.

    Fails when:
        - attention sinks: the most important token of a group is a sink, and survives.
        - components are of nearly one weight: their vectors, and so the groups, are arbitrary. A
          smooth crop has few components that mean something.
        - the budget is large: the threshold grows with it, and from $M = 32 / \bar{c}$ on, with
          $\bar{c}$ the mean cosine, nothing is suppressed. The method then ranks by attention
          inside groups.
        - the question decides: it is not read.

    Faithful:
        The official code (ZhengyaoFang/PruneSID@4ef17d9, LLaVA) draws random numbers for its
        decomposition, so that its groups change from run to run where components have nearly one
        weight; here it is exact. With an exact one put in its place, the official function and
        `PruneSID(keep_cls=True)` kept the same tokens on random inputs, compared once by hand;
        nothing is recorded. `tests/tokenprune/test_formulas.py::test_prunesid` holds the formula.
        The paper's budget by an image's information is not in that function, and not built. The
        official rows come group by group, here in raster order.
    """

    needs: ClassVar[tuple[str, ...]] = ("attention",)
    paper: ClassVar[str | None] = "2603.09480"
    approximates: ClassVar[str | None] = EXACT + "; the class token is left out"
    faithful: ClassVar[str | None] = "variant"
    keep_cls: bool = False

    def __post_init__(self) -> None:
        if self.keep_cls:
            self.declare(needs=("attention", "cls"), approximates=EXACT)

    def count(self, num_tokens: int, num_keep: int) -> int:
        return num_keep + self.keep_cls

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        assert tokens.attention is not None  # it is in `needs`
        crops = tokens.features.detach().split(BLOCK_CROPS)
        parts = zip(crops, tokens.attention.detach().split(BLOCK_CROPS), strict=True)
        kept = torch.cat([self._choose(*part, num_keep) for part in parts])
        result = select_tokens(tokens, kept, tokens.attention)
        if not self.keep_cls:
            return result
        assert tokens.cls is not None  # it is in `needs`
        return replace(result, extra=tokens.cls[:, None])

    def _choose(self, features: Tensor, attention: Tensor, num_keep: int) -> Tensor:
        """[B, N, D] and [B, N] of a few crops -> [B, K] ascending."""
        batch, num_tokens, _ = features.shape
        budget = num_keep + self.keep_cls
        num_groups = min(max(budget // 4, 1), num_tokens)
        groups = semantic_groups(features, num_groups)
        together = groups[:, :, None] == groups[:, None]  # [B, N, N]
        similarity = cosine_matrix(features)
        num_pairs = max(num_tokens * (num_tokens - 1) // 2, 1)
        threshold = budget / 32 * similarity.triu(1).sum((1, 2), keepdim=True) / num_pairs
        rank = attention.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        before = rank[:, None] < rank[:, :, None]  # [B, i, j]: j before i
        survives = suppress(together & before & (similarity > threshold))

        rank = torch.where(survives, rank, rank + num_tokens)
        place = (together & (rank[:, None] < rank[:, :, None])).sum(2)
        sizes = groups.new_zeros(batch, num_groups)
        survivors = sizes.scatter_add(1, groups, survives.long())
        sizes = sizes.scatter_add(1, groups, torch.ones_like(groups))
        quotas = group_quotas(sizes, survivors, num_keep, budget)
        keeps = place < quotas.gather(1, groups)
        return keeps.nonzero()[:, 1].view(batch, num_keep)


def semantic_groups(features: Tensor, num_groups: int) -> Tensor:
    """[B, N, D] -> [B, N]: the principal component in which each token weighs most."""
    # In float64: rounding that differs with the batch would turn vectors of near eigenvalues.
    spread = features.double().sigmoid()
    spread = spread - spread.mean(2, keepdim=True)
    vectors = torch.linalg.eigh((spread @ spread.mT).nan_to_num()).eigenvectors
    return vectors.flip(2)[:, :, :num_groups].abs().argmax(2)


def suppress(rivals: Tensor) -> Tensor:
    """[B, N, N], whether j suppresses i if j survives -> [B, N], which survive.

    Who suppresses ranks before, so that each round settles one more place of the ranking at least.
    """
    survives = rivals.new_ones(rivals.shape[:2])
    while True:
        settled = ~(rivals & survives[:, None]).any(2)
        if torch.equal(settled, survives):
            return survives
        survives = settled


def group_quotas(sizes: Tensor, survivors: Tensor, num_keep: int, budget: int) -> Tensor:
    """[B, G] tokens and survivors of each group -> [B, G] int64, which sum to `num_keep`."""
    at_least, most = sizes.clamp(max=1), 5 * math.ceil(budget / 64)
    at_most = survivors.clamp(max=most)
    enough = sizes.sum(1, keepdim=True).clamp(max=budget)
    while (short := at_most.sum(1, keepdim=True) < enough).any():
        at_most = torch.minimum(at_most + short, sizes)
    free = num_keep - at_least.sum(1, keepdim=True)
    until = (survivors.cumsum(1) * free).double() / survivors.sum(1, keepdim=True)
    shares = until.round().long().diff(dim=1, prepend=free * 0)
    quotas = torch.minimum(at_least + shares, at_most)

    order = survivors.argsort(dim=1, descending=True, stable=True)
    room = (at_most - quotas).gather(1, order).cumsum(1)
    missing = num_keep - quotas.sum(1, keepdim=True)
    return quotas.scatter_add(1, order, torch.minimum(room, missing).diff(dim=1, prepend=free * 0))
