"""Each image's tokens -> the ones that remain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokenprune.budget import Budget, share_out
from tokenprune.hosts.crops import CropsOfImage, share_of_crop
from tokenprune.hosts.layout import ImageLayout, TokenGrid
from tokenprune.hosts.reduced import ReducedGrids, ReducedImages, check_reduced, unpacked, whole
from tokenprune.hosts.tower import TowerValues
from tokenprune.method import Method
from tokenprune.tokens import VisionTokens


def reduce_images(
    method: Method,
    budget: Budget,
    features: Tensor,
    layouts: Sequence[ImageLayout],
    tower: Sequence[TowerValues] | None,
    texts: Sequence[Tensor] | None,
    project: Callable[[Tensor], Tensor],
) -> ReducedImages:
    """Reduces every image to its budget; grids of one shape go through the method together.

    Args:
        features: [P, D] all visual tokens of the batch.
        layouts: one per image, in order.
        tower: for each image what the method needs of the tower, or None.
        texts: for each image [T, D], the embeddings of its prompt's words, or None.
        project: [.., D'] -> [.., D], rows of the tower into the space of the features, for methods
            `before_projector`.
    """
    keep = torch.zeros(len(features), dtype=torch.bool, device=features.device)
    groups: dict[tuple[int, int, int, int, int], list[Grid]] = {}
    grids: list[ReducedGrids] = []
    before, offset = [layout.num_tokens for layout in layouts], 0
    for number, layout in enumerate(layouts):
        num_keep = kept_of(budget, layout, method)
        read = None if tower is None else tower[number]
        text = None if texts is None else texts[number]
        shown = torch.zeros(layout.num_tokens, dtype=torch.bool, device=features.device)
        cut = grids_of(layout, method)
        shares = share_out(num_keep, [grid.num_tokens for grid in cut])
        for grid, share, part in _with_values(cut, shares, read):
            places = grid.positions(features.device)
            shown[places] = True
            shape = grid.frames, grid.rows, grid.cols, share, 0 if text is None else len(text)
            groups.setdefault(shape, []).append(Grid(places + offset, part, text))
        # What shows nothing is kept last, in order, where the budget still has room.
        rest = (~shown).nonzero()[:, 0][: num_keep - sum(shares)]
        if method.by_crop:
            of_image = features[offset : offset + layout.num_tokens]
            crops = CropsOfImage(layout, of_image, read)
            grids += [
                replace(grid, positions=grid.positions + offset)
                for grid in crops.reduced(method, num_keep, project)
            ]
            rest = crops.beside(method)
        keep[rest + offset] = True
        offset += layout.num_tokens
    for group in groups.items():
        grids += _reduce_group(method, features, *group)
    for grid_group in grids:
        keep[grid_group.kept.flatten()] = True
    after = torch.stack([of_image.sum() for of_image in keep.split(before)]).tolist()
    return ReducedImages(keep, grids, before, after)


@dataclass(frozen=True)
class Grid:
    """One grid on its way to the method: its places, and what the method may need besides."""

    positions: Tensor
    tower: TowerValues | None
    text: Tensor | None


def kept_of(budget: Budget, layout: ImageLayout, method: Method) -> int:
    """Tokens that an image or a video keeps."""
    if method.over_time and not layout.is_video:
        return layout.num_tokens
    if budget.per == "frame" and layout.is_video:
        (grid,) = layout.grids
        kept = grid.frames * budget.kept_of(grid.num_tokens // grid.frames)
        return layout.num_tokens if kept == grid.num_tokens else kept
    return budget.kept_of(layout.num_tokens)


def count_of(budget: Budget, layout: ImageLayout, method: Method) -> int:
    """Rows that are left of an image or a video, before it is encoded.

    Raises:
        NotImplementedError: the number depends on the image.
    """
    num_keep = kept_of(budget, layout, method)
    known = method.known_count(layout.num_tokens, num_keep)
    if num_keep == layout.num_tokens:
        return num_keep
    if not method.by_crop:
        return known
    num_crops, num_patches = layout.crops.places.shape
    return num_crops * method.known_count(num_patches, share_of_crop(num_keep, layout.crops))


def grids_of(layout: ImageLayout, method: Method) -> list[TokenGrid]:
    """What the method is handed of an image or a video: a video as a whole, or frame by frame.

    Nothing of an image that goes `by_crop`.
    """
    if method.by_crop:
        return []
    if method.over_time:
        return list(layout.grids) if layout.is_video else []
    return [frame for grid in layout.grids for frame in grid.by_frame()]


def _with_values(
    grids: list[TokenGrid], shares: list[int], tower: TowerValues | None
) -> list[tuple[TokenGrid, int, TowerValues | None]]:
    sizes = [grid.num_tokens for grid in grids]
    if not sizes:  # an image that stays whole, though its tower was read
        return []
    parts = [None] * len(sizes) if tower is None else tower.split(sizes)
    return list(zip(grids, shares, parts, strict=True))


def _reduce_group(
    method: Method,
    features: Tensor,
    shape: tuple[int, int, int, int, int],
    members: list[Grid],
) -> list[ReducedGrids]:
    """All of them together, or each by itself where they keep different numbers of tokens."""
    frames, rows, cols, num_keep, _ = shape
    positions = torch.stack([grid.positions for grid in members])
    if num_keep == 0:
        return [ReducedGrids(positions, None)]
    tokens = VisionTokens(
        features[positions],
        (rows, cols),
        frames=frames,
        text=_stack([grid.text for grid in members], features),
        **TowerValues.fields([grid.tower for grid in members if grid.tower], features.device),
    )
    if num_keep == frames * rows * cols:
        return [ReducedGrids(positions, whole(tokens))]
    result = method.reduce(tokens, num_keep)
    if method.count(tokens.features.shape[1], num_keep) is None:
        return [
            ReducedGrids(positions[crop : crop + 1], one)
            for crop, one in enumerate(unpacked(type(method).__name__, result, tokens))
        ]
    check_reduced(type(method).__name__, result, tokens, num_keep)
    return [ReducedGrids(positions, result)]


def _stack(parts: list[Tensor | None], like: Tensor) -> Tensor | None:
    """All there or none."""
    present = [part for part in parts if part is not None]
    return torch.stack(present).to(like.device) if present else None
