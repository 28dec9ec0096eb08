"""The two things that pass between an encoder, a method and a language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class VisionTokens:
    """Patch tokens of a batch of crops, as a vision tower hands them over.

    Attributes:
        features: [B, N, D] floating point, the patch tokens in raster order, without class token.
        grid_size: (rows, cols) of the patch grid, with rows * cols == N.
        cls: [B, D], the class token's output, or None where the tower has none.
    """

    features: Tensor
    grid_size: tuple[int, int]
    cls: Tensor | None = None

    def __post_init__(self) -> None:
        from tokenprune.ops.checks import check_features, check_grid, check_shape

        check_features(self.features)
        check_grid(self.grid_size, self.features.shape[1])
        if self.cls is not None:
            batch, _, width = self.features.shape
            check_shape("cls", self.cls, (batch, width), "[B, D]", like=self.features)


@dataclass(frozen=True)
class ReducedTokens:
    """The tokens that remain of each crop, and where every token went.

    Attributes:
        features: [B, K, D], dtype of the input. Zero where `valid` is False.
        keep_indices: [B, K] int64, ascending and unique positions in the crop's raster order.
        valid: [B, K] bool, False where the crop had fewer clusters than K and the slot is empty.
        assignment: [B, N] int64, each token's root. A token whose root is not among the valid
            `keep_indices` was dropped; the others are averaged into their root's slot.
        scores: [B, K] float32, the rank that kept each slot; -inf where `valid` is False.
        grid_size: (rows, cols) of the patch grid where it is known, else None.
    """

    features: Tensor
    keep_indices: Tensor
    valid: Tensor
    assignment: Tensor
    scores: Tensor
    grid_size: tuple[int, int] | None = None

    @property
    def counts(self) -> Tensor:
        """[B, K] int64: how many of the crop's tokens each slot stands for, 0 where not valid."""
        per_root = torch.zeros_like(self.assignment)
        per_root.scatter_add_(1, self.assignment, torch.ones_like(self.assignment))
        return per_root.gather(1, self.keep_indices) * self.valid

    @staticmethod
    def cat(parts: Sequence[ReducedTokens]) -> ReducedTokens:
        """Joins results of several batches along B. All must have the same K, N and D."""
        if not parts:
            raise ValueError("ReducedTokens.cat expects at least one part, got none")
        if len(parts) == 1:
            return parts[0]
        return ReducedTokens(
            features=torch.cat([part.features for part in parts]),
            keep_indices=torch.cat([part.keep_indices for part in parts]),
            valid=torch.cat([part.valid for part in parts]),
            assignment=torch.cat([part.assignment for part in parts]),
            scores=torch.cat([part.scores for part in parts]),
            grid_size=parts[0].grid_size,
        )
