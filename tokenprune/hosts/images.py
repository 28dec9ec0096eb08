"""Each image's tokens -> the ones that remain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokenprune.budget import Budget, share_out
from tokenprune.hosts.crops import tokens_of, without_padding
from tokenprune.hosts.layout import ImageLayout, TokenGrid
from tokenprune.hosts.tower import TowerValues
from tokenprune.method import Method
from tokenprune.ops import cluster_mean
from tokenprune.tokens import ReducedTokens, VisionTokens, refuse_extra


@dataclass(frozen=True)
class ReducedGrids:
    """Grids of one shape and budget, reduced together.

    Attributes:
        positions: [G, N] int64, the place of each token among all visual tokens of the batch.
        tokens: of the G grids; None where nothing of them is kept.
    """

    positions: Tensor
    tokens: ReducedTokens | None

    @property
    def kept(self) -> Tensor:
        """[G, K] places of the kept tokens."""
        if self.tokens is None:
            return self.positions[:, :0]
        return self.positions.gather(1, self.tokens.keep_indices)

    def features(self, like: Tensor) -> Tensor:
        """[G * K, D]. A slot that stands for no cluster keeps its own token: the count is fixed."""
        if self.tokens is None:
            return like[:0]
        features = self.tokens.features.flatten(0, 1)
        valid = self.tokens.valid.flatten()[:, None]
        return torch.where(valid, features, like[self.kept.flatten()])

    def applied_to(self, other: Tensor) -> Tensor:
        """[P, D'] further features of all visual tokens -> [G * K, D'], reduced in step."""
        if self.tokens is None:
            return other[:0]
        means = cluster_mean(
            other[self.positions], self.tokens.assignment, self.tokens.keep_indices
        )
        valid = self.tokens.valid.flatten()[:, None]
        return torch.where(valid, means.flatten(0, 1), other[self.kept.flatten()])


@dataclass(frozen=True)
class ReducedImages:
    """All images of a batch, in the order of their placeholders.

    Attributes:
        keep: [P] bool over all visual tokens of the batch.
        grids: what was reduced together.
        tokens_before, tokens_after: per image.
    """

    keep: Tensor
    grids: list[ReducedGrids]
    tokens_before: list[int]
    tokens_after: list[int]

    def detached(self) -> ReducedImages:
        """The same, without what a backward would need."""
        grids = [
            grid
            if grid.tokens is None
            else replace(grid, tokens=replace(grid.tokens, features=grid.tokens.features.detach()))
            for grid in self.grids
        ]
        return replace(self, grids=grids)

    def places(self) -> Tensor:
        """[M] int64 ascending: the kept tokens whose features a method has made."""
        return torch.cat([grid.kept.flatten() for grid in self.grids]).sort().values

    def features(self, features: Tensor) -> Tensor:
        """[M, D] their features, in that order."""
        return self._sorted([grid.features(features) for grid in self.grids])

    def applied_to(self, other: Tensor) -> Tensor:
        """[P, D'] -> [kept, D']: further features of the same tokens, reduced in step."""
        result = other.clone()
        result[self.places()] = self._sorted([grid.applied_to(other) for grid in self.grids])
        return result[self.keep]

    def _sorted(self, parts: list[Tensor]) -> Tensor:
        order = torch.cat([grid.kept.flatten() for grid in self.grids]).argsort()
        return torch.cat(parts)[order]


def reduce_images(
    method: Method,
    budget: Budget,
    features: Tensor,
    layouts: Sequence[ImageLayout],
    tower: Sequence[TowerValues] | None,
    texts: Sequence[Tensor] | None,
) -> ReducedImages:
    """Reduces every image to its budget; grids of one shape go through the method together.

    Args:
        features: [P, D] all visual tokens of the batch.
        layouts: one per image, in order.
        tower: for each image what the method needs of the tower, or None.
        texts: for each image [T, D], the embeddings of its prompt's words, or None.
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
            of_image = slice(offset, offset + layout.num_tokens)
            of_crops = _reduce_by_crop(method, features[of_image], layout, num_keep, read)
            grids += [replace(grid, positions=grid.positions + offset) for grid in of_crops]
            rest = (~shown_by(layout, features.device)).nonzero()[:, 0]
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


def _reduce_by_crop(
    method: Method, features: Tensor, layout: ImageLayout, num_keep: int, tower: TowerValues | None
) -> list[ReducedGrids]:
    """One image's crops, whose budget is dealt to them in equal parts, then as the method does.

    Args:
        features: [T, D] of the image's tokens.
        num_keep: of the image.
        tower: of the image, crop by crop.
    """
    crops, everything = layout.crops, torch.arange(len(features), device=features.device)
    num_crops, num_patches = crops.places.shape
    if num_keep == len(features):
        whole_image = whole(VisionTokens(features[None], (1, num_keep)))
        return [ReducedGrids(everything[None], whole_image)]
    tokens = tokens_of(crops, features, tower)
    result = method.reduce(tokens, min(max(num_keep // num_crops, 1), num_patches))
    places = crops.places.to(features.device)
    parts = unpacked(type(method).__name__, result, tokens)
    return [
        ReducedGrids(of_crop[None, of_crop >= 0], without_padding(one, of_crop))
        for of_crop, one in zip(places, parts, strict=True)
    ]


def shown_by(layout: ImageLayout, device: torch.device) -> Tensor:
    """[T] bool: which of an image's tokens are of a patch."""
    places = layout.crops.places.to(device)
    shown = torch.zeros(layout.num_tokens, dtype=torch.bool, device=device)
    shown[places[places >= 0]] = True
    return shown


def unpacked(name: str, result: object, tokens: VisionTokens) -> list[ReducedTokens]:
    """Each crop's result, checked, of a method that may keep different numbers of tokens."""
    if not isinstance(result, ReducedTokens):
        raise TypeError(f"{name} must return ReducedTokens, got {type(result).__name__}")
    parts = result.unpacked()
    if len(parts) != len(tokens.features):
        raise ValueError(f"{name} must reduce {len(tokens.features)} crops, got {len(parts)}")
    for crop, part in enumerate(parts):
        check_reduced(name, part, tokens.crop(crop), part.keep_indices.shape[1])
    return parts


def check_reduced(name: str, result: object, tokens: VisionTokens, num_keep: int) -> None:
    """Raises unless a method, which may be anybody's, has kept what it was asked to keep."""
    if not isinstance(result, ReducedTokens):
        raise TypeError(f"{name} must return ReducedTokens, got {type(result).__name__}")
    refuse_extra(name, result, "apply")
    batch, num_tokens, width = tokens.features.shape
    kept, shape = result.keep_indices, tuple(result.features.shape)
    if tuple(kept.shape) != (batch, num_keep) or shape != (batch, num_keep, width):
        raise ValueError(
            f"{name} must keep {num_keep} tokens of each of {batch} images, "
            f"got keep_indices {list(kept.shape)} and features {list(shape)}"
        )
    if bool((kept.diff(dim=1) <= 0).any() | (kept < 0).any() | (kept >= num_tokens).any()):
        raise ValueError(f"{name} must give keep_indices ascending and below {num_tokens}")


def _stack(parts: list[Tensor | None], like: Tensor) -> Tensor | None:
    """All there or none."""
    present = [part for part in parts if part is not None]
    return torch.stack(present).to(like.device) if present else None


def whole(tokens: VisionTokens) -> ReducedTokens:
    """Every token kept as it is."""
    batch, num_tokens, _ = tokens.features.shape
    everyone = torch.arange(num_tokens, device=tokens.features.device).repeat(batch, 1)
    return ReducedTokens(
        features=tokens.features,
        keep_indices=everyone,
        valid=torch.ones_like(everyone, dtype=torch.bool),
        assignment=everyone,
        scores=torch.zeros(batch, num_tokens, device=tokens.features.device),
        grid_size=tokens.grid_size,
    )
