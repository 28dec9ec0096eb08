"""ops.bipartite_merge: tokens merge into their best match, round by round."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.ops.checks import check_features, check_finite, check_num_keep
from tokenprune.ops.cluster_mean import cluster_mean
from tokenprune.ops.most_similar.op import most_similar
from tokenprune.tokens import ReducedTokens


def bipartite_merge(
    features: Tensor, num_keep: int, *, strict: bool = False, impl: str = "auto"
) -> ReducedTokens:
    """Merges similar tokens until `num_keep` are left.

    Bipartite soft matching of ToMe (arXiv 2210.09461), repeated to a budget. In each
    round the tokens alternate, in raster order, between sources and targets; every source finds
    the target of largest cosine similarity, and the most similar sources merge into theirs. A
    merged token is the mean of all original tokens in it, which is ToMe's mean by size.

    Args:
        features: [B, N, D] patch tokens, float32, bfloat16, float16 or float64. ToMe compares
            attention keys; pass those and average the features by `assignment` to do the same.
        num_keep: tokens to keep per crop, 1 to N.
        strict: raise if features are not finite (one more read, and a synchronization on GPUs).
        impl: of `most_similar`, which does the matching.

    Returns:
        ReducedTokens in raster order, each at its last target's place; `scores` are the logarithms
        of sizes, which ToMe adds to attention logits. Ties go to the lowest index. Differentiable
        in `features`: the gradient of a mean goes back to its members.

    Raises:
        ValueError: shapes, `num_keep`, values that are not finite when strict, an unknown `impl`.
        TypeError: dtypes.
        NotImplementedError: Triton is not installed.
    """
    check_features(features)
    batch, num_tokens, _ = features.shape
    check_num_keep(num_keep, num_tokens)
    if strict:
        check_finite(features=features)
    tokens = torch.arange(num_tokens, device=features.device).repeat(batch, 1)
    assignment = left = tokens
    means = features.detach()
    while left.shape[1] > num_keep:
        sources, targets = left[:, ::2], left[:, 1::2]
        merging = min(left.shape[1] - num_keep, targets.shape[1])
        similarity, match = most_similar(means[:, ::2], means[:, 1::2], impl=impl)
        # A stable sort: ties go to the lowest index.
        ranking = similarity.argsort(dim=1, descending=True, stable=True)[:, :merging]
        target = targets.gather(1, match.gather(1, ranking))
        moves = tokens.scatter(1, sources.gather(1, ranking), target)
        assignment = moves.gather(1, assignment)
        left = left.scatter(1, 2 * ranking, num_tokens).sort(dim=1).values[:, :-merging]
        means = cluster_mean(features.detach(), assignment, left)
    sizes = torch.zeros_like(tokens).scatter_add_(1, assignment, torch.ones_like(tokens))
    return ReducedTokens(
        features=cluster_mean(features, assignment, left),
        keep_indices=left,
        valid=torch.ones_like(left, dtype=torch.bool),
        assignment=assignment,
        scores=sizes.gather(1, left).float().log(),
    )
