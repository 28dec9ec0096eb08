"""Greedy selections as papers and other libraries write them: a loop over the kept tokens."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def max_min_loop(features: Tensor, num_keep: int) -> Tensor:
    """DivPrune (arXiv 2503.02175): [B, N, D] -> [B, K] kept tokens, ascending."""
    return torch.stack([_max_min(crop, num_keep) for crop in features]).sort(1).values


def _max_min(features: Tensor, num_keep: int) -> Tensor:
    directions = functional.normalize(features, dim=-1)
    distance = 1 - directions @ directions.T
    order = torch.empty(num_keep, dtype=torch.int64, device=features.device)
    for step in range(num_keep):
        if step == 0:  # the second smallest of a row: the smallest is the token's own
            nearest = distance.kthvalue(min(2, len(distance)), dim=0).values
        else:
            nearest = distance[order[:step]].amin(0)
            nearest[order[:step]] = -1
        order[step] = nearest.argmax()
    return order


def dpp_loop(features: Tensor, num_keep: int, quality: Tensor) -> Tensor:
    """CDPruner (arXiv 2506.10967): [B, N, D] and [B, N] -> [B, K] kept tokens, ascending."""
    pairs = zip(features, quality, strict=True)
    return torch.stack([_dpp(crop, num_keep, weights) for crop, weights in pairs]).sort(1).values


def _dpp(features: Tensor, num_keep: int, quality: Tensor) -> Tensor:
    directions = functional.normalize(features, dim=-1)
    kernel = quality[:, None] * (directions @ directions.T) * quality[None, :]
    gain = kernel.diagonal().clone()
    rows = features.new_empty(num_keep, len(features))
    order = torch.empty(num_keep, dtype=torch.int64, device=features.device)
    for step in range(num_keep):
        best = gain.argmax()
        order[step] = best
        rows[step] = (kernel[best] - rows[:step, best] @ rows[:step]) / gain[best].sqrt()
        gain = gain - rows[step].square()
        gain[order[: step + 1]] = -torch.inf
    return order


def max_min_steps(features: Tensor, num_keep: int) -> Tensor:
    """As `max_min_loop`, all crops at once: each step multiplies all tokens by the last kept."""
    directions = functional.normalize(features, dim=2)
    similarity = directions @ directions.mT
    similarity.diagonal(dim1=1, dim2=2).fill_(-1)
    nearest = 1 - similarity.amax(2)
    crops = torch.arange(len(features), device=features.device)
    order = torch.empty(len(features), num_keep, dtype=torch.int64, device=features.device)
    for step in range(num_keep):
        best = order[:, step] = nearest.argmax(1)
        to_best = 1 - (directions @ directions[crops, best, :, None]).squeeze(2)
        nearest = torch.minimum(nearest, to_best) if step else to_best
        nearest.scatter_(1, order[:, : step + 1], -1)
    return order.sort(1).values


def dpp_steps(features: Tensor, num_keep: int, quality: Tensor) -> Tensor:
    """As `dpp_loop`, all crops at once: each step multiplies all tokens by the last kept."""
    weighted = functional.normalize(features, dim=2) * quality[:, :, None]
    gain = weighted.square().sum(2)
    crops = torch.arange(len(features), device=features.device)
    rows = features.new_empty(num_keep, *features.shape[:2])
    order = torch.empty(len(features), num_keep, dtype=torch.int64, device=features.device)
    for step in range(num_keep):
        best = order[:, step] = gain.argmax(1)
        row = (weighted @ weighted[crops, best, :, None]).squeeze(2)
        row = row - torch.einsum("tb,tbn->bn", rows[:step, crops, best], rows[:step])
        rows[step] = row / gain[crops, best, None].sqrt()
        gain = gain - rows[step].square()
        gain.scatter_(1, order[:, : step + 1], -torch.inf)
    return order.sort(1).values


def coverage_dense(features: Tensor, num_keep: int, weights: Tensor) -> Tensor:
    """SCOPE (arXiv 2510.24214), all crops at once: [B, N, D] and [B, N] -> [B, K], ascending.

    Each step compares all pairs of all crops, [B, N, N], as the batched code in public use does.
    """
    directions = functional.normalize(features, dim=2)
    similarity = directions @ directions.mT
    crops = torch.arange(len(features), device=features.device)
    covered = torch.zeros_like(weights)
    kept = torch.zeros_like(weights, dtype=torch.bool)
    for _ in range(num_keep):
        added = (similarity.masked_fill(kept[:, None], 0) - covered[:, :, None]).clamp(min=0)
        best = (added.sum(1) * weights).masked_fill(kept, -torch.inf).argmax(1)
        covered = torch.maximum(covered, similarity[crops, best])
        kept[crops, best] = True
    return kept.nonzero()[:, 1].view(len(features), num_keep)


def mmr_loop(features: Tensor, num_keep: int, relevance: Tensor) -> Tensor:
    """IDPruner (arXiv 2602.13315): [B, N, D] and [B, N] -> [B, K] kept tokens, ascending."""
    pairs = zip(features, relevance, strict=True)
    return torch.stack([_mmr(crop, num_keep, values) for crop, values in pairs]).sort(1).values


def _mmr(features: Tensor, num_keep: int, relevance: Tensor) -> Tensor:
    directions = functional.normalize(features, dim=-1)
    similarity = directions @ directions.T
    order = torch.empty(num_keep, dtype=torch.int64, device=features.device)
    value = relevance.clone()
    for step in range(num_keep):
        order[step] = value.argmax()
        likeness = similarity[order[: step + 1]].amax(0)
        value = (relevance - likeness) / 2
        value[order[: step + 1]] = -torch.inf
    return order
