"""The class token ranks the clusters; the best are averaged."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokenprune.ops.cluster_mean.reference import cluster_mean, packed_cluster_mean
from tokenprune.ops.common.precision import wide_dtype, wide_matmul, without_autocast
from tokenprune.tokens import ReducedTokens, cu_seqlens_of


@without_autocast
def anchored_select(
    features: Tensor,
    cls: Tensor,
    roots: Tensor,
    q_weight: Tensor,
    q_bias: Tensor,
    k_weight: Tensor,
    k_bias: Tensor,
    num_keep: int | Tensor,
) -> ReducedTokens:
    dtype = wide_dtype(features.dtype)
    anchor, offset = anchor_vector(cls, q_weight, q_bias, k_weight, k_bias, dtype)
    token_scores = wide_matmul(features, anchor.mT).squeeze(-1) + offset
    return select_clusters(features, token_scores, roots, num_keep)


def anchor_vector(
    cls: Tensor,
    q_weight: Tensor,
    q_bias: Tensor,
    k_weight: Tensor,
    k_bias: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """([B, 1, D], [B, 1]) such that anchor . f + offset = (Wq cls + bq) . (Wk f + bk) / sqrt(D).

    q . (Wk f + bk) = (Wk^T q) . f + bk . q: one vector per crop instead of a projection per token.
    """
    query = cls.to(dtype) @ q_weight.to(dtype).T + q_bias.to(dtype)
    query = query / math.sqrt(cls.shape[1])
    anchor, offset = query @ k_weight.to(dtype), query @ k_bias.to(dtype)
    return anchor[:, None, :], offset[:, None]


def select_clusters(
    features: Tensor,
    token_scores: Tensor,
    roots: Tensor,
    num_keep: int | Tensor,
    grid_size: tuple[int, int] | None = None,
) -> ReducedTokens:
    """Keeps the clusters whose tokens score best on average: [B, N, D], [B, N] scores and roots.

    `num_keep` is one number, or a quota per crop [B] and then the result is packed.
    """
    # The score is affine in the token, so the mean of scores is the score of the mean.
    counts = torch.zeros_like(token_scores).scatter_add(1, roots, torch.ones_like(token_scores))
    sums = torch.zeros_like(token_scores).scatter_add(1, roots, token_scores)
    cluster_scores = (sums / counts.clamp(min=1)).masked_fill(counts == 0, -math.inf)

    # A stable sort: ties go to the lowest index, and empty cells come last.
    ranking = cluster_scores.detach().argsort(dim=1, descending=True, stable=True)
    if isinstance(num_keep, Tensor):
        rank = ranking.argsort(dim=1)
        crops, cells = (rank < num_keep.to(rank.device)[:, None]).nonzero(as_tuple=True)
        return ReducedTokens(
            features=packed_cluster_mean(features, roots, crops, cells),
            keep_indices=cells,
            valid=counts[crops, cells] > 0,
            assignment=roots,
            scores=cluster_scores[crops, cells].float(),
            grid_size=grid_size,
            cu_seqlens=cu_seqlens_of(num_keep.to(rank.device)),
        )
    keep_indices = ranking[:, :num_keep].sort(dim=1).values
    return ReducedTokens(
        features=cluster_mean(features, roots, keep_indices),
        keep_indices=keep_indices,
        valid=counts.gather(1, keep_indices) > 0,
        assignment=roots,
        scores=cluster_scores.gather(1, keep_indices).float(),
        grid_size=grid_size,
    )
