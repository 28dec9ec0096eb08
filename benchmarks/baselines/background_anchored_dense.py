"""The published algorithm of GeoLLaVA-8K written out step by step, dense and eager.

What `tokenprune.ops.background_anchored` is measured against: a 576 x 576 affinity per crop for an
argmax over nine, the means of all clusters, and a projection of each, although few are kept. It
runs in the dtype of its inputs throughout.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class DenseResult(NamedTuple):
    """Everything on the way, for comparisons.

    logits [B, N, 9], parents and roots [B, N], counts [B, N], cluster_scores [B, N] (-inf where a
    cell is no root), keep_indices [B, K], features [B, K, D].
    """

    logits: Tensor
    parents: Tensor
    roots: Tensor
    counts: Tensor
    cluster_scores: Tensor
    keep_indices: Tensor
    features: Tensor


def background_anchored_dense(
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
    num_keep: int,
    max_iters: int = 12,
) -> DenseResult:
    """Arguments as `tokenprune.ops.background_anchored` takes them."""
    batch, num_tokens, width = features.shape
    rows, cols = grid_size

    # Affinity of each token to the nine cells around it.
    grid = features.transpose(1, 2).reshape(batch, width, rows, cols)
    depthwise = functional.conv2d(grid, dw_weight, padding=1, groups=width)
    logits = functional.conv2d(depthwise, pw_weight, pw_bias).flatten(2).transpose(1, 2)
    weights = logits.softmax(-1)

    # The dense affinity, and from it the strongest cell.
    affinity = weights.new_zeros(batch, num_tokens, num_tokens)
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
    slot = 0
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            cells = (y + dy).clamp(0, rows - 1) * cols + (x + dx).clamp(0, cols - 1)
            index = cells.flatten().to(features.device).expand(batch, -1)[:, :, None]
            affinity.scatter_add_(2, index, weights[:, :, slot : slot + 1])
            slot += 1
    parents = affinity.argmax(-1)

    # Pointer jumping, until no crop changes any more.
    roots = parents
    for _ in range(max_iters):
        jumped = roots.gather(1, roots)
        if torch.equal(jumped, roots):
            break
        roots = jumped

    # The mean of every cluster.
    counts = torch.zeros_like(roots).scatter_add_(1, roots, torch.ones_like(roots))
    sums = torch.zeros_like(features).scatter_add_(
        1, roots[:, :, None].expand(-1, -1, width), features
    )
    means = sums / counts.clamp(min=1)[:, :, None].to(features.dtype)

    # The class token's attention to every mean, and the best of them.
    query = functional.linear(cls, q_weight, q_bias)
    keys = functional.linear(means, k_weight, k_bias)
    scores = (keys @ query[:, :, None]).squeeze(-1) / math.sqrt(width)
    scores = scores.masked_fill(counts == 0, -math.inf)
    keep_indices = scores.topk(num_keep, dim=1).indices.sort(dim=1).values
    kept = means.gather(1, keep_indices[:, :, None].expand(-1, -1, width))
    return DenseResult(logits, parents, roots, counts, scores, keep_indices, kept)
