"""What selecting clusters gives on the GPU, and how gradients come back through it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from tokenprune.ops.cluster_mean.op import gradient_of_members
from tokenprune.ops.common.quotas import Quotas
from tokenprune.tokens import ReducedTokens


class Selection(NamedTuple):
    """The five outputs of the kernel, or their gradients.

    Attributes:
        means: [B, K, D], or packed [T, D].
        keep_indices: [B, K] or [T] int64.
        valid: [B, K] or [T] bool.
        roots: [B, N] int64.
        scores: [B, K] or [T] float32.
    """

    means: Any
    keep_indices: Any
    valid: Any
    roots: Any
    scores: Any

    @staticmethod
    def empty(features: Tensor, quotas: Quotas) -> Selection:
        """A selection without contents, for fakes."""
        batch, num_tokens, width = features.shape
        slots = quotas.shape(batch)
        return Selection(
            means=features.new_empty(*slots, width),
            keep_indices=features.new_empty(slots, dtype=torch.int64),
            valid=features.new_empty(slots, dtype=torch.bool),
            roots=features.new_empty(batch, num_tokens, dtype=torch.int64),
            scores=features.new_empty(slots, dtype=torch.float32),
        )

    def reduced(self, quotas: Quotas, grid_size: tuple[int, int] | None = None) -> ReducedTokens:
        return ReducedTokens(
            features=self.means,
            keep_indices=self.keep_indices,
            valid=self.valid,
            assignment=self.roots,
            scores=self.scores,
            grid_size=grid_size,
            cu_seqlens=quotas.cu_seqlens,
        )


class SelectionGradients(NamedTuple):
    """The gradients of the features, the anchors and their offsets."""

    features: Tensor
    anchors: Tensor
    offsets: Tensor


def save_selection(
    ctx: Any, anchors: Tensor, cu_seqlens: Tensor | None, selection: Selection
) -> None:
    """Keeps what `selection_gradients` needs."""
    means, keep_indices, valid, roots, _ = selection
    ctx.mark_non_differentiable(keep_indices, valid, roots)
    ctx.save_for_backward(anchors, cu_seqlens, means, keep_indices, valid, roots)


def selection_gradients(ctx: Any, grads: Selection) -> SelectionGradients:
    """Carries the gradients of the means and of their scores back to what they were made of.

    A member of a cluster receives an equal share of its mean's gradient, and of its score's along
    the anchor; the score of a mean is affine in the mean.
    """
    anchors, cu_seqlens, means, keep_indices, valid, roots = ctx.saved_tensors
    batch, width = anchors.shape
    quotas = Quotas(keep_indices.shape[-1], cu_seqlens, keep_indices.numel())
    crops = quotas.crops(batch, roots.device)
    means, cells, valid = means.reshape(-1, width), keep_indices.flatten(), valid.flatten()

    wide = torch.zeros_like(means, dtype=torch.float32)
    if grads.means is not None:
        wide = wide + grads.means.reshape_as(means).float()
    of_scores = torch.zeros_like(valid, dtype=torch.float32)
    if grads.scores is not None:
        of_scores = torch.where(valid, grads.scores.flatten(), of_scores)
    wide = wide + of_scores[:, None] * anchors[crops]
    sizes = torch.zeros_like(roots).scatter_add_(1, roots, torch.ones_like(roots))
    shares = wide / sizes[crops, cells].clamp(min=1)[:, None]
    along = of_scores[:, None] * means.float()
    return SelectionGradients(
        features=gradient_of_members(shares, roots, crops, cells, means),
        anchors=torch.zeros_like(anchors).index_add(0, crops, along),
        offsets=anchors.new_zeros(batch).index_add(0, crops, of_scores),
    )
