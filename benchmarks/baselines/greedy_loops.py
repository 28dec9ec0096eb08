"""Greedy selections as they are published: crop by crop, a Python loop over the kept tokens."""

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
