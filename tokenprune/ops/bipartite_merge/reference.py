"""Rounds of matching and averaging: two operators, whose kernels are all that a GPU needs."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.ops.cluster_mean.op import cluster_mean
from tokenprune.ops.most_similar.op import most_similar
from tokenprune.tokens import ReducedTokens


def bipartite_merge(
    features: Tensor,
    num_keep: int,
    compared: Tensor | None,
    impl: str,
    sizes: Tensor | None = None,
    class_token: bool = False,
) -> ReducedTokens:
    """`impl` names the implementation of `most_similar` and `cluster_mean`."""
    batch, num_tokens, _ = features.shape
    tokens = torch.arange(num_tokens, device=features.device).repeat(batch, 1)
    assignment = left = tokens
    compared = (features if compared is None else compared).detach()
    means = compared
    first = int(class_token)  # the first source; the class token would be one, and never merges
    while left.shape[1] > num_keep:
        sources, targets = left[:, first::2], left[:, 1 - first :: 2]
        merging = min(left.shape[1] - num_keep, left.shape[1] // 2)
        similarity, match = most_similar(means[:, first::2], means[:, 1 - first :: 2], impl=impl)
        # A stable sort: ties go to the lowest index.
        ranking = similarity.argsort(dim=1, descending=True, stable=True)[:, :merging]
        target = targets.gather(1, match.gather(1, ranking))
        moves = tokens.scatter(1, sources.gather(1, ranking), target)
        assignment = moves.gather(1, assignment)
        left = left.scatter(1, 2 * ranking + first, num_tokens).sort(dim=1).values[:, :-merging]
        means = cluster_mean(compared, assignment, left, sizes, impl=impl)
    counted = torch.ones_like(tokens) if sizes is None else sizes.detach()
    merged = torch.zeros_like(counted).scatter_add_(1, assignment, counted)
    return ReducedTokens(
        features=cluster_mean(features, assignment, left, sizes, impl=impl),
        keep_indices=left,
        valid=torch.ones_like(left, dtype=torch.bool),
        assignment=assignment,
        scores=merged.gather(1, left).float().log(),
    )
