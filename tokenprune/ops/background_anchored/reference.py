"""Score, merge, select, with one product for all that the scores need."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tokenprune.ops.anchored_select.reference import anchor_direction, select_clusters
from tokenprune.ops.background_anchored.soft import (
    hard_membership,
    neighbor_weights,
    soft_membership,
    weighted_mean,
)
from tokenprune.ops.background_merge.reference import background_merge
from tokenprune.ops.background_score.reference import (
    background_score,
    convolves,
    shift_and_add,
    tap_weights,
)
from tokenprune.ops.common.precision import BLOCK_CROPS, wide_dtype, wide_matmul, without_autocast
from tokenprune.ops.common.quotas import Quotas
from tokenprune.ops.common.weights import AffinityHead, Anchor
from tokenprune.tokens import ReducedTokens


@without_autocast
def background_anchored(
    features: Tensor,
    cls: Tensor,
    grid_size: tuple[int, int],
    head: AffinityHead,
    anchor: Anchor,
    quotas: Quotas,
    *,
    max_iters: int,
    cycles: str,
    assignment: str = "hard",
    temperature: float = 1.0,
) -> ReducedTokens:
    """Logits and scores in one pass over the features, then clusters, then the best of them."""
    affinity, ranks = logits_and_scores(features, cls, grid_size, head, anchor)
    roots = background_merge(affinity, grid_size, max_iters, cycles)
    hard = select_clusters(features, ranks, roots, quotas, grid_size)
    if assignment == "hard":
        return hard
    weights = neighbor_weights(affinity, grid_size, temperature)
    membership = soft_membership(weights, roots, hard.keep_indices, hard.valid, grid_size)
    if assignment == "straight_through":
        # The value of the hard membership, to the bit, with the soft one's gradient.
        membership = membership - membership.detach()
        membership = membership + hard_membership(
            roots, hard.keep_indices, hard.valid, membership.dtype
        )
    means = weighted_mean(membership, features).to(features.dtype)
    scores = weighted_mean(membership, ranks[..., None]).squeeze(-1).float()
    scores = scores.masked_fill(~hard.valid, float("-inf"))
    if assignment == "straight_through":
        means = hard.features.detach() + (means - means.detach())
        scores = hard.scores.detach() + (scores - scores.detach()).nan_to_num()
    return replace(hard, features=means, scores=scores)


def logits_and_scores(
    features: Tensor,
    cls: Tensor,
    grid_size: tuple[int, int],
    head: AffinityHead,
    anchor: Anchor,
) -> tuple[Tensor, Tensor]:
    """[B, N, 9] logits and [B, N] token scores; memory does not grow with B.

    Where the convolutions are slow each token meets 82 vectors once: nine taps of nine outputs, and
    its crop's anchor.
    """
    dtype = wide_dtype(features.dtype)
    anchors, offsets = anchor_direction(cls, anchor, dtype)
    if convolves(features):
        scores = torch.bmm(anchors[:, None], features.mT).squeeze(1) + offsets[:, None]
        return background_score(features, grid_size, head), scores
    taps = tap_weights(head, features.dtype).to(dtype)
    logits, ranks = [], []
    for block, direction, offset in zip(
        *(tensor.split(BLOCK_CROPS) for tensor in (features, anchors, offsets)), strict=True
    ):
        vectors = torch.cat([taps.expand(len(block), -1, -1), direction[:, None]], dim=1)
        products = wide_matmul(block, vectors.mT)
        logits.append(shift_and_add(products[:, :, :81], grid_size, head.bias))
        ranks.append(products[:, :, 81] + offset[:, None])
    return torch.cat(logits), torch.cat(ranks)
