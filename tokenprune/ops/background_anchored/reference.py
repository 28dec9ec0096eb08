"""Score, merge, select, with one product for all that the scores need."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.ops.anchored_select.reference import anchor_vector, select_clusters
from tokenprune.ops.background_merge.reference import background_merge
from tokenprune.ops.background_score.reference import shift_and_add, tap_weights
from tokenprune.ops.precision import BLOCK_CROPS, wide_dtype, wide_matmul, without_autocast
from tokenprune.tokens import ReducedTokens


@without_autocast
def background_anchored(
    features: Tensor,
    cls: Tensor,
    grid_size: tuple[int, int],
    dw_weight: Tensor,
    pw_weight: Tensor,
    pw_bias: Tensor,
    q_weight: Tensor,
    q_bias: Tensor,
    k_weight: Tensor,
    k_bias: Tensor,
    num_keep: int | Tensor,
    max_iters: int,
    cycles: str,
) -> ReducedTokens:
    """Each token meets 82 vectors once: nine taps of nine outputs, and its crop's anchor.

    A few crops at a time: their products stay in the cache, and memory does not grow with B.
    """
    dtype = wide_dtype(features.dtype)
    taps = tap_weights(dw_weight, pw_weight, features.dtype).to(dtype)
    anchors, offsets = anchor_vector(cls, q_weight, q_bias, k_weight, k_bias, dtype)

    logits, token_scores = [], []
    for block, anchor, offset in zip(
        *(tensor.split(BLOCK_CROPS) for tensor in (features, anchors, offsets)), strict=True
    ):
        vectors = torch.cat([taps.expand(len(block), -1, -1), anchor], dim=1)
        products = wide_matmul(block, vectors.mT)
        logits.append(shift_and_add(products[:, :, :81], grid_size, pw_bias))
        token_scores.append(products[:, :, 81] + offset)
    roots = background_merge(torch.cat(logits), grid_size, max_iters, cycles)
    return select_clusters(features, torch.cat(token_scores), roots, num_keep, grid_size)
