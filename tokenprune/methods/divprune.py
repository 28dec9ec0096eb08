"""DivPrune: the most diverse tokens (arXiv 2503.02175)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tokenprune.method import Method
from tokenprune.selection import select_tokens
from tokenprune.tokens import ReducedTokens, VisionTokens


@dataclass(kw_only=True)
class DivPrune(Method):
    """Greedy max-min diversity: the next token kept is the one farthest from all kept so far.

    The distance is 1 - cosine similarity (section 3.2); the first token is the one whose nearest
    other token is farthest. Looks at the image alone.
    """

    def _reduce(self, tokens: VisionTokens, num_keep: int) -> ReducedTokens:
        directions = functional.normalize(tokens.features.detach().float(), dim=-1)
        order, distances = max_min_order(directions, num_keep)
        return select_tokens(tokens, order.sort(dim=1).values, distances)


def max_min_order(directions: Tensor, num_keep: int) -> tuple[Tensor, Tensor]:
    """[B, N, D] unit vectors -> ([B, K] in the order chosen, [B, N] distance when chosen)."""
    batch, num_tokens, _ = directions.shape
    crops = torch.arange(batch, device=directions.device)
    order = directions.new_empty(batch, num_keep, dtype=torch.int64)
    chosen_at = directions.new_full((batch, num_tokens), -torch.inf)
    nearest = nearest_other(directions)
    for step in range(num_keep):
        best = nearest.argmax(dim=1)
        order[:, step] = best
        chosen_at[crops, best] = nearest[crops, best]
        to_best = 1 - (directions @ directions[crops, best, :, None]).squeeze(-1)
        nearest = to_best if step == 0 else torch.minimum(nearest, to_best)
        nearest[crops.repeat_interleave(step + 1), order[:, : step + 1].flatten()] = -torch.inf
    return order, chosen_at


def nearest_other(directions: Tensor, block: int = 256) -> Tensor:
    """[B, N] distance of each token to its nearest other, never N x N at once."""
    num_tokens = directions.shape[1]
    if num_tokens == 1:
        return torch.zeros_like(directions[:, :, 0])
    parts = []
    for start in range(0, num_tokens, block):
        rows = directions[:, start : start + block]
        similarity = rows @ directions.mT
        own = torch.arange(rows.shape[1], device=rows.device)
        similarity[:, own, own + start] = -torch.inf
        parts.append(1 - similarity.amax(dim=2))
    return torch.cat(parts, dim=1)
