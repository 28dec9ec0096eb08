"""What methods share: keep some tokens as they are, and drop the rest or merge it into them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokenprune import ops
from tokenprune.layer_tokens import LayerTokens
from tokenprune.tokens import ReducedTokens, VisionTokens, cu_seqlens_of

FEATURE_LAYER = -2  # of a tower: its output is what LLaVA's projector takes
# What a method declares that ranks by attention, and compares tokens as they come instead.
AS_THEY_COME: dict[str, Any] = {
    "needs": ("attention",),
    "tower_layers": {},
    "faithful": "variant",
    "approximates": "similarity of the tokens as they come, not of the tower's",
}


def best(scores: Tensor, num_keep: int) -> Tensor:
    """[B, N] scores -> [B, K] indices of the highest, ascending; ties go to the lowest index."""
    ranking = scores.detach().argsort(dim=1, descending=True, stable=True)
    return ranking[:, :num_keep].sort(dim=1).values


def others(indices: Tensor, num_tokens: int) -> Tensor:
    """[B, K] distinct indices -> [B, N - K], those that are not among them, ascending."""
    tokens = torch.arange(num_tokens, device=indices.device).repeat(len(indices), 1)
    tokens.scatter_(1, indices, num_tokens)  # sorts behind all
    return tokens.sort(dim=1).values[:, : num_tokens - indices.shape[1]]


def rows(features: Tensor, indices: Tensor) -> Tensor:
    """[B, N, D] at [B, K] -> [B, K, D]."""
    return features.gather(1, indices[:, :, None].expand(-1, -1, features.shape[2]))


def compared_rows(tokens: VisionTokens, compared: str) -> Tensor:
    """[B, N, D']: what similarity is measured on.

    Args:
        compared: "features"; "keys", their mean over heads; or "hidden_states", of `FEATURE_LAYER`.
    """
    if compared == "features":
        return tokens.features
    if compared == "hidden_states":
        return tokens.of_layers("hidden_states")[FEATURE_LAYER]
    assert tokens.keys is not None  # who compares keys has them in `needs`
    return tokens.keys.unflatten(2, (tokens.num_heads, -1)).mean(2)


def select_tokens(tokens: VisionTokens, keep_indices: Tensor, scores: Tensor) -> ReducedTokens:
    """Keeps the tokens at `keep_indices` unchanged.

    Args:
        tokens: B crops of N tokens.
        keep_indices: [B, K] int64, ascending.
        scores: [B, N], the rank by which they were chosen.
    """
    features = tokens.features
    batch, num_tokens, _ = features.shape
    return ReducedTokens(
        features=rows(features, keep_indices),
        keep_indices=keep_indices,
        valid=torch.ones_like(keep_indices, dtype=torch.bool),
        assignment=torch.arange(num_tokens, device=features.device).repeat(batch, 1),
        scores=scores.gather(1, keep_indices).float(),
        grid_size=tokens.grid_size,
    )


def select_marked(tokens: VisionTokens, marked: Tensor, scores: Tensor) -> ReducedTokens:
    """Keeps the marked tokens unchanged, a number of its own for each crop, packed.

    Args:
        tokens: B crops of N tokens.
        marked: [B, N] bool.
        scores: [B, N], the rank by which they were chosen.
    """
    crops, kept = marked.nonzero(as_tuple=True)
    batch, num_tokens = marked.shape
    return ReducedTokens(
        features=tokens.features[crops, kept],
        keep_indices=kept,
        valid=torch.ones_like(kept, dtype=torch.bool),
        assignment=torch.arange(num_tokens, device=kept.device).repeat(batch, 1),
        scores=scores[crops, kept].float(),
        grid_size=tokens.grid_size,
        cu_seqlens=cu_seqlens_of(marked.sum(1)),
    )


def select_in_layer(tokens: LayerTokens, keep_indices: Tensor, scores: Tensor) -> ReducedTokens:
    """As `select_tokens`, of a layer's hidden states; one zero each where there are none."""
    states = tokens.hidden_states
    features = (
        scores.new_zeros(scores.shape)[..., None] if states is None else states[:, tokens.visual]
    )
    return select_tokens(VisionTokens(features, (1, tokens.num_tokens)), keep_indices, scores)


def merge_tokens(
    tokens: VisionTokens,
    keep_indices: Tensor,
    targets: Tensor,
    scores: Tensor,
    weights: Tensor | None = None,
    compared: Tensor | None = None,
) -> ReducedTokens:
    """Keeps the tokens at `keep_indices` and merges every other into its most similar target.

    Args:
        tokens: B crops of N tokens.
        keep_indices: [B, K] int64, ascending.
        targets: [B, M] int64, those of `keep_indices` that others merge into.
        scores: [B, N], the rank by which tokens were chosen.
        weights: [B, N], what each token counts in a mean; 1 by default.
        compared: [B, N, Dk], what similarity is measured on; the features by default.
    """
    features = tokens.features
    batch, num_tokens, _ = features.shape
    assignment = torch.arange(num_tokens, device=features.device).repeat(batch, 1)
    merged = others(keep_indices, num_tokens)
    if merged.shape[1]:
        compared = features if compared is None else compared
        _, match = ops.most_similar(rows(compared, merged), rows(compared, targets))
        assignment = assignment.scatter(1, merged, targets.gather(1, match))
    return ReducedTokens(
        features=ops.cluster_mean(features, assignment, keep_indices, weights),
        keep_indices=keep_indices,
        valid=torch.ones_like(keep_indices, dtype=torch.bool),
        assignment=assignment,
        scores=scores.gather(1, keep_indices).float(),
        grid_size=tokens.grid_size,
    )
