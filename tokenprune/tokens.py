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
        attention: [B, N] float32, the attention that each token receives in the tower's last used
            layer, from the class token where there is one, else from all tokens; mean over heads.
            None where nobody asked for it.
        text: [B, T, D], embeddings of the question's words in the space of the features, or None.
    """

    features: Tensor
    grid_size: tuple[int, int]
    cls: Tensor | None = None
    attention: Tensor | None = None
    text: Tensor | None = None

    def __post_init__(self) -> None:
        from tokenprune.ops.common.checks import (
            check_features,
            check_grid,
            check_shape,
            check_text,
        )

        check_features(self.features)
        check_grid(self.grid_size, self.features.shape[1])
        batch, num_tokens, width = self.features.shape
        if self.cls is not None:
            check_shape("cls", self.cls, (batch, width), "[B, D]", like=self.features)
        if self.attention is not None:
            check_shape(
                "attention", self.attention, (batch, num_tokens), "[B, N]", like=self.features
            )
        if self.text is not None:
            check_text(self.text, self.features)


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
        cu_seqlens: None, or [B + 1] int32 where each crop had a quota of its own: then the slots of
            all crops lie packed, features [T, D] and keep_indices, valid and scores [T], those of
            crop b from cu_seqlens[b] to cu_seqlens[b + 1], as FlashAttention's varlen functions
            take them.
    """

    features: Tensor
    keep_indices: Tensor
    valid: Tensor
    assignment: Tensor
    scores: Tensor
    grid_size: tuple[int, int] | None = None
    cu_seqlens: Tensor | None = None

    @property
    def counts(self) -> Tensor:
        """[B, K] or [T] int64: how many tokens each slot stands for, 0 where not valid."""
        per_root = torch.zeros_like(self.assignment)
        per_root.scatter_add_(1, self.assignment, torch.ones_like(self.assignment))
        if self.cu_seqlens is None:
            return per_root.gather(1, self.keep_indices) * self.valid
        return per_root[crops_of(self.cu_seqlens), self.keep_indices] * self.valid

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
            cu_seqlens=_cat_cu_seqlens([part.cu_seqlens for part in parts]),
        )


def cu_seqlens_of(quotas: Tensor) -> Tensor:
    """[B] slots per crop -> [B + 1] int32, where each crop's slots start."""
    return torch.nn.functional.pad(quotas.cumsum(0), (1, 0)).int()


def crops_of(cu_seqlens: Tensor, total: int | None = None) -> Tensor:
    """[T] int64: the crop of each packed slot. Knowing `total` = T spares a synchronization."""
    crops = torch.arange(len(cu_seqlens) - 1, device=cu_seqlens.device)
    return crops.repeat_interleave(cu_seqlens.diff(), output_size=total)


def _cat_cu_seqlens(parts: Sequence[Tensor | None]) -> Tensor | None:
    packed = [part for part in parts if part is not None]
    if len(packed) != len(parts):
        return None
    return cu_seqlens_of(torch.cat([part.diff() for part in packed]))
