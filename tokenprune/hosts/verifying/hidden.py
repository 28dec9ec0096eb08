"""The whole model with tokens hidden, as `verify` runs it, and faults to compare with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune.hosts.images import ReducedImages


def hide(mask: Any, hidden: Tensor, like: Tensor, *, in_layer: bool) -> Any:
    """An attention mask in which the columns `hidden` [B, L] of the prompt are closed.

    Args:
        mask: [B, L], [B, H, L, L] boolean or additive, None for all that is causal, or one of them
            for each kind of layer.
        like: [B, L, D], the states that it is for.
        in_layer: None stands for a mask as layers take it, not as language models do.
    """
    if isinstance(mask, dict):
        return {kind: hide(one, hidden, like, in_layer=True) for kind, one in mask.items()}
    batch, length, _ = like.shape
    closed = nn.functional.pad(hidden.to(like.device), (0, length - hidden.shape[1]))
    if mask is None:
        mask = torch.ones(batch, length, dtype=torch.int64, device=like.device)
        if in_layer:
            mask = torch.ones(1, 1, length, length, dtype=torch.bool, device=like.device).tril()
    if isinstance(mask, Tensor) and mask.ndim == 2:
        return mask.masked_fill(closed, 0)
    if not (isinstance(mask, Tensor) and mask.ndim == 4 and mask.shape[3] == length):
        raise NotImplementedError(f"tokens cannot be hidden in a {type(mask).__name__}")
    # Hidden tokens go on seeing themselves: no row of a mask may be empty.
    own = torch.eye(length, dtype=torch.bool, device=like.device) & closed[:, :, None]
    closed = closed[:, None, None, :] & ~own[:, None]
    if mask.dtype == torch.bool:
        return (mask & ~closed) | own[:, None]
    return mask.masked_fill(closed, torch.finfo(mask.dtype).min)


def with_features(
    given: Mapping[str, Any], images: ReducedImages, placeholders: Tensor
) -> dict[str, Any]:
    """The embeddings, and features that layers add, in which kept tokens carry what was made."""
    embeddings = given["inputs_embeds"].clone()
    rows, cols = (axis.to(embeddings.device) for axis in placeholders.nonzero(as_tuple=True))
    added = [layer.clone() for layer in given.get("deepstack_visual_embeds") or []]
    for grid in images.grids:
        if grid.tokens is None:
            continue
        tokens = grid.tokens
        for crop, places in enumerate(grid.positions):
            for slot in tokens.valid[crop].nonzero()[:, 0].tolist():
                root = tokens.keep_indices[crop, slot]
                place = places[root].to(embeddings.device)
                embeddings[rows[place], cols[place]] = tokens.features[crop, slot].to(embeddings)
                members = places[tokens.assignment[crop] == root]
                for layer in added:
                    layer[place] = layer[members].float().mean(0).to(layer)
    changed: dict[str, Any] = {"inputs_embeds": embeddings}
    return changed | ({"deepstack_visual_embeds": added} if added else {})


def moved_by_rounding(embeddings: Tensor) -> Tensor:
    """Each number moved up or down by one rounding of its dtype, by chance."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, embeddings.shape, generator=generator) * 2 - 1
    eps = torch.finfo(embeddings.dtype).eps
    return embeddings * (1 + eps * signs.to(embeddings))


def shifted(given: Mapping[str, Any], begin: Tensor, shift: int) -> dict[str, Any]:
    """Positions of all columns from `begin` [B] on moved, and a mask beside them."""
    batch, length, _ = given["inputs_embeds"].shape
    device = given["inputs_embeds"].device
    columns = torch.arange(length, device=device)
    positions = given.get("position_ids")
    if positions is None:
        positions = columns[None]
    mask = given.get("attention_mask")
    if mask is None:  # without one, positions with a gap pass for two packed sequences
        mask = torch.ones(batch, length, dtype=torch.int64, device=device)
    after = columns.to(positions) >= begin[:, None].to(positions)
    moved = positions.expand(*positions.shape[:-2], batch, -1) + shift * after
    return {"position_ids": moved, "attention_mask": mask}


def first_gap(hidden: Tensor, kept: list[Tensor]) -> Tensor:
    """[B]: the first hidden column that a visible one comes before; positions are relative.

    Where there is none, the second visible column.
    """
    begins = []
    for row, columns in zip(hidden, kept, strict=True):
        gaps = row.nonzero()[:, 0]
        gaps = gaps[gaps > columns[0].to(gaps)]
        begins.append(int(gaps[0]) if len(gaps) else int(columns[min(1, len(columns) - 1)]))
    return torch.tensor(begins)
