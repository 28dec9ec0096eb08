"""The class token ranks the clusters; the best are averaged."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tokenprune.ops.cluster_mean.reference import cluster_mean, packed_cluster_mean
from tokenprune.ops.common.precision import wide_dtype, wide_matmul, without_autocast
from tokenprune.ops.common.quotas import Quotas
from tokenprune.ops.common.weights import Anchor
from tokenprune.tokens import ReducedTokens


class AnchorDirection(NamedTuple):
    """What the class token looks for, as one vector: anchor . f + offset is a token's score.

    Attributes:
        anchors: [B, D].
        offsets: [B].
    """

    anchors: Tensor
    offsets: Tensor


@without_autocast
def anchored_select(
    features: Tensor, cls: Tensor, roots: Tensor, anchor: Anchor, quotas: Quotas
) -> ReducedTokens:
    anchors, offsets = anchor_direction(cls, anchor, wide_dtype(features.dtype))
    token_scores = wide_matmul(features, anchors[:, :, None]).squeeze(-1) + offsets[:, None]
    return select_clusters(features, token_scores, roots, quotas)


def anchor_direction(cls: Tensor, anchor: Anchor, dtype: torch.dtype) -> AnchorDirection:
    """Such that anchor . f + offset = (Wq cls + bq) . (Wk f + bk) / sqrt(D).

    q . (Wk f + bk) = (Wk^T q) . f + bk . q: one vector per crop instead of a projection per token.
    """
    query = cls.to(dtype) @ anchor.q.to(dtype).T + anchor.q_bias.to(dtype)
    query = query / math.sqrt(cls.shape[1])
    return AnchorDirection(query @ anchor.k.to(dtype), query @ anchor.k_bias.to(dtype))


def select_clusters(
    features: Tensor,
    token_scores: Tensor,
    roots: Tensor,
    quotas: Quotas,
    grid_size: tuple[int, int] | None = None,
) -> ReducedTokens:
    """Keeps the clusters whose tokens score best on average: [B, N, D], [B, N] scores and roots."""
    # The score is affine in the token, so the mean of scores is the score of the mean.
    counts = torch.zeros_like(token_scores).scatter_add(1, roots, torch.ones_like(token_scores))
    sums = torch.zeros_like(token_scores).scatter_add(1, roots, token_scores)
    cluster_scores = (sums / counts.clamp(min=1)).masked_fill(counts == 0, -math.inf)

    # A stable sort: ties go to the lowest index, and empty cells come last.
    ranking = cluster_scores.detach().argsort(dim=1, descending=True, stable=True)
    if quotas.cu_seqlens is not None:
        crops, cells = quotas.has_slot(ranking.argsort(dim=1)).nonzero(as_tuple=True)
        return ReducedTokens(
            features=packed_cluster_mean(features, roots, crops, cells),
            keep_indices=cells,
            valid=counts[crops, cells] > 0,
            assignment=roots,
            scores=cluster_scores[crops, cells].float(),
            grid_size=grid_size,
            cu_seqlens=quotas.cu_seqlens,
        )
    keep_indices = ranking[:, : quotas.largest].sort(dim=1).values
    return ReducedTokens(
        features=cluster_mean(features, roots, keep_indices),
        keep_indices=keep_indices,
        valid=counts.gather(1, keep_indices) > 0,
        assignment=roots,
        scores=cluster_scores.gather(1, keep_indices).float(),
        grid_size=grid_size,
    )
