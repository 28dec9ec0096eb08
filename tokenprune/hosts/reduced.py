"""What a reduction leaves of a batch's images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

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
    def results(self) -> list[ReducedTokens]:
        """What the method gave, none where nothing is kept."""
        return [] if self.tokens is None else [self.tokens]

    @property
    def merged(self) -> Tensor:
        """[G] int64: tokens that are part of a kept token's mean without being that token."""
        if self.tokens is None:
            return torch.zeros_like(self.positions[:, 0])
        return joined(self.tokens).sum(1)

    @property
    def num_extra(self) -> int:
        """Rows that stand for no token of an image."""
        return 0

    def detached(self) -> ReducedGrids:
        """The same, without what a backward would need."""
        if self.tokens is None:
            return self
        return replace(self, tokens=replace(self.tokens, features=self.tokens.features.detach()))

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
class ProjectedImage(ReducedGrids):
    """One image whose rows a method has made before the projector.

    Rows lie in the method's order, in columns that ascend: those of kept tokens, and of the image's
    last dropped tokens for rows that stand for none.

    Attributes:
        positions: [1, T], the places of all of the image's tokens.
        tokens: None.
        crops: of each crop what the method gave, projected.
        places: [C, N] int64, which of the image's tokens each crop's patches are; -1 for none.
        columns: [R] int64 ascending, the tokens of the image in whose columns rows lie.
        rows: [R, D].
    """

    crops: tuple[ReducedTokens, ...]
    places: Tensor
    columns: Tensor
    rows: Tensor

    @property
    def results(self) -> list[ReducedTokens]:
        return list(self.crops)

    @property
    def merged(self) -> Tensor:
        parts = zip(self.crops, self.places, strict=True)
        return torch.stack([(joined(one)[0] & (of >= 0)).sum() for one, of in parts]).sum()[None]

    @property
    def num_extra(self) -> int:
        return len(self.columns) - len(places_of_slots(self.crops, self.places))

    def detached(self) -> ReducedGrids:
        crops = [
            replace(
                crop,
                features=crop.features.detach(),
                extra=None if crop.extra is None else crop.extra.detach(),
            )
            for crop in self.crops
        ]
        return replace(self, crops=tuple(crops), rows=self.rows.detach())

    @property
    def kept(self) -> Tensor:
        return self.positions[:, self.columns]

    def features(self, like: Tensor) -> Tensor:
        return self.rows

    def applied_to(self, other: Tensor) -> Tensor:
        raise NotImplementedError("features that layers add have no rows before the projector")


def places_of_slots(crops: Sequence[ReducedTokens], places: Tensor) -> Tensor:
    """[n] int64: the tokens of an image that its crops' slots stand for, padding left out."""
    parts = zip(crops, places, strict=True)
    slots = torch.cat([of_crop[one.keep_indices[0]] for one, of_crop in parts])
    return slots[slots >= 0]


def joined(tokens: ReducedTokens) -> Tensor:
    """[B, N] bool: tokens that are part of a slot without being its root."""
    roots = torch.zeros_like(tokens.assignment, dtype=torch.bool)
    roots.scatter_(1, tokens.keep_indices, tokens.valid)
    kept = torch.zeros_like(roots).scatter_(1, tokens.keep_indices, True)
    return roots.gather(1, tokens.assignment) & ~kept


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
        grids = [grid.detached() for grid in self.grids]
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


def unpacked(
    name: str, result: object, tokens: VisionTokens, *, with_extra: bool = False
) -> list[ReducedTokens]:
    """Each crop's result, checked, of a method that may keep different numbers of tokens.

    Args:
        name: of the method, for messages.
        with_extra: rows that stand for no token are welcome.
    """
    if not isinstance(result, ReducedTokens):
        raise TypeError(f"{name} must return ReducedTokens, got {type(result).__name__}")
    parts = result.unpacked()
    if len(parts) != len(tokens.features):
        raise ValueError(f"{name} must reduce {len(tokens.features)} crops, got {len(parts)}")
    for crop, part in enumerate(parts):
        plain = replace(part, extra=None) if with_extra else part
        check_reduced(name, plain, tokens.crop(crop), part.keep_indices.shape[1])
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
