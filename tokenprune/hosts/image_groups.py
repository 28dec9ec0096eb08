"""Images of one size on their way through the layers: which of their tokens are left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenprune.budget import Budget
from tokenprune.hosts.images import kept_of
from tokenprune.hosts.layout import ImageLayout
from tokenprune.hosts.reduced import ReducedGrids, ReducedImages
from tokenprune.method import LayerMethod
from tokenprune.selection import best, select_tokens
from tokenprune.tokens import VisionTokens


@dataclass
class ImageGroup:
    """Images of one size.

    Attributes:
        positions: [G, N] int64, the place of each token among all visual tokens of the batch.
        grid_size: of their tokens; one row where they are no single grid.
        counts: tokens that remain after each cut.
        kept: [G, K] int64 ascending, those that remain now.
    """

    positions: Tensor
    grid_size: tuple[int, int]
    counts: list[int]
    kept: Tensor

    def shrinks(self, turn: int) -> bool:
        return self.counts[turn] < self.kept.shape[1]

    def cut(self, turn: int, scores: Tensor) -> None:
        """`scores`: [P] of all visual tokens of the batch."""
        ranks = scores[self.positions.gather(1, self.kept)]
        self.kept = self.kept.gather(1, best(ranks, self.counts[turn]))


def group_images(
    layouts: Sequence[ImageLayout],
    method: LayerMethod,
    budget: Budget,
    num_cuts: int,
    device: torch.device,
) -> list[ImageGroup]:
    members: dict[tuple[int, int, tuple[int, int]], list[int]] = {}
    offset = 0
    for layout in layouts:
        size = layout.num_tokens
        grid = layout.grids[0]
        plain = grid.num_tokens == size and grid.frames == 1
        shape = (grid.rows, grid.cols) if plain else (1, size)
        num_keep = kept_of(budget, layout, method)
        members.setdefault((size, num_keep, shape), []).append(offset)
        offset += size
    groups = []
    for (size, num_keep, shape), starts in members.items():
        numbers = torch.arange(size, device=device).repeat(len(starts), 1)
        counts = method.counts(size, num_keep, num_cuts)
        positions = numbers + torch.tensor(starts, device=device)[:, None]
        groups.append(ImageGroup(positions, shape, counts, numbers))
    return groups


def reduced_images(
    groups: Sequence[ImageGroup],
    layouts: Sequence[ImageLayout],
    tokens_after: list[int],
    features: Tensor,
    scores: Tensor,
) -> ReducedImages:
    """What is left of all images.

    Args:
        tokens_after: per image.
        features: [P, D] of all visual tokens, as they came into the first layer.
        scores: [P], of the last cut.
    """
    keep = torch.zeros_like(scores, dtype=torch.bool)
    grids = []
    for group in groups:
        keep[group.positions.gather(1, group.kept)] = True
        tokens = VisionTokens(features[group.positions], group.grid_size)
        reduced = select_tokens(tokens, group.kept, scores[group.positions])
        grids.append(ReducedGrids(group.positions, reduced))
    before = [layout.num_tokens for layout in layouts]
    return ReducedImages(keep, grids, before, tokens_after)
