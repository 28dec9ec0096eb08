"""Images of one size on their way through the layers: which of their tokens are left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokenprune.budget import Budget
from tokenprune.hosts.images import kept_of
from tokenprune.hosts.layout import ImageLayout
from tokenprune.hosts.reduced import ReducedGrids, ReducedImages
from tokenprune.method import Method
from tokenprune.selection import select_tokens
from tokenprune.tokens import ReducedTokens, VisionTokens


@dataclass
class ImageGroup:
    """Images of one size; one image alone where a method makes rows of several tokens.

    Attributes:
        positions: [G, N] int64, the place of each token among all visual tokens of the batch.
        grid_size: of their tokens; one row where they are no single grid.
        counts: tokens to keep at each cut.
        places: [G, M] int64 ascending, which of an image's N places its rows stand in now.
        tokens: [G, M] int64, which token each row is; -1 where it is none alone.
        scores: [G, K] float32, of the tokens that were kept last; None before the first cut.
        result: what the method made of the image last, where it makes rows.
    """

    positions: Tensor
    grid_size: tuple[int, int]
    counts: list[int]
    places: Tensor
    tokens: Tensor
    scores: Tensor | None = None
    result: ReducedTokens | None = None

    def shrinks(self, turn: int) -> bool:
        return self.counts[turn] < self.places.shape[1]

    @property
    def standing(self) -> Tensor:
        """[G, M] int64, the places of its rows among all visual tokens of the batch."""
        return self.positions.gather(1, self.places)

    def cut(self, results: Sequence[tuple[Tensor, ReducedTokens]], merges: bool) -> None:
        """Takes what a method made of the rows.

        Rows of no single token come last, and take places of tokens that left: the last ones of the
        image. Kept tokens go on in their own, or in earlier ones where those are taken.

        Args:
            results: for some of the images, [g] their numbers in the group, and what came out.
            merges: rows may be other than the tokens that went in.
        """
        order = torch.cat([members for members, _ in results]).argsort()
        kept = torch.cat([result.keep_indices for _, result in results])[order]
        self.scores = torch.cat([result.scores for _, result in results])[order]
        extra = results[0][1].extra
        num_extra = 0 if extra is None else extra.shape[1]
        if merges:
            (self.result,) = (result for _, result in results)
        last = self.places.shape[1] - kept.shape[1] - num_extra
        numbers = torch.arange(kept.shape[1] + num_extra, device=kept.device)
        slots = (last + numbers).repeat(len(kept), 1)
        slots[:, : kept.shape[1]] = slots[:, : kept.shape[1]].minimum(kept)
        none = kept.new_full((len(kept), num_extra), -1)
        self.tokens = torch.cat([self.tokens.gather(1, kept), none], 1)
        self.places = self.places.gather(1, slots)

    def reduced(self, features: Tensor) -> ReducedTokens:
        """What is left of the images.

        Args:
            features: [P, D] of all visual tokens of the batch, as they came into the first layer.
        """
        whole = VisionTokens(features[self.positions], self.grid_size)
        scores = torch.zeros(self.positions.shape, device=features.device)
        result = self.result
        if result is None:
            if self.scores is not None:
                scores = scores.scatter(1, self.tokens, self.scores)
            return select_tokens(whole, self.tokens, scores)
        alone = self.tokens[0] >= 0
        rows, kept = result.rows.detach(), self.tokens[:, alone]
        assignment = result.assignment
        if assignment.shape != self.positions.shape:  # of rows that another cut has left
            assignment = select_tokens(whole, kept, scores).assignment
        return replace(
            result,
            features=rows[:, alone],
            keep_indices=kept,
            valid=torch.ones_like(kept, dtype=torch.bool),
            assignment=assignment,
            scores=result.scores[:, alone[: result.scores.shape[1]]],
            grid_size=self.grid_size,
            extra=rows[:, ~alone] if bool((~alone).any()) else None,
        )


def group_images(
    layouts: Sequence[ImageLayout],
    method: Method,
    budget: Budget,
    num_cuts: int,
    device: torch.device,
) -> list[ImageGroup]:
    members: dict[tuple[int, int, tuple[int, int], int], list[int]] = {}
    offset = 0
    for number, layout in enumerate(layouts):
        size = layout.num_tokens
        grid = layout.grids[0]
        plain = grid.num_tokens == size and grid.frames == 1
        shape = (grid.rows, grid.cols) if plain else (1, size)
        num_keep = kept_of(budget, layout, method)
        key = size, num_keep, shape, number if method.merges else -1
        members.setdefault(key, []).append(offset)
        offset += size
    groups = []
    for (size, num_keep, shape, _), starts in members.items():
        numbers = torch.arange(size, device=device).repeat(len(starts), 1)
        counts = method.counts(size, num_keep, num_cuts)
        positions = numbers + torch.tensor(starts, device=device)[:, None]
        groups.append(ImageGroup(positions, shape, counts, numbers, numbers))
    return groups


def reduced_images(
    groups: Sequence[ImageGroup], layouts: Sequence[ImageLayout], features: Tensor
) -> ReducedImages:
    """What is left of all images.

    Args:
        features: [P, D] of all visual tokens, as they came into the first layer.
    """
    keep = torch.zeros(len(features), dtype=torch.bool, device=features.device)
    rows: dict[int, int] = {}
    for group in groups:
        keep[group.standing.flatten()] = True
        rows |= dict.fromkeys(group.positions[:, 0].tolist(), group.places.shape[1])
    return ReducedImages(
        keep,
        [ReducedGrids(group.positions, group.reduced(features)) for group in groups],
        [layout.num_tokens for layout in layouts],
        [rows[first] for first in sorted(rows)],
    )
