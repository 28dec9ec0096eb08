"""mRoPE positions of the tokens that remain: what they were in the whole prompt.

vLLM lays positions out before an image is encoded, when nobody knows which of its tokens will
remain. Text and generated tokens get their final ones from the start; an image's tokens all stand
at its first one's. How far each token lies from there travels with its features, as further
columns, and is added when the step that holds the token runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tokenprune.hosts.layout import ImageLayout

AXES = 3  # time, row, column
COLUMNS = 2 * AXES  # each as two bytes: features may be bfloat16, which is exact up to 256


def shift_columns(kept: Tensor, layout: ImageLayout, dtype: torch.dtype) -> Tensor:
    """[K] kept tokens of an image -> [K, 6], how far they lie from its first token, in bytes."""
    (grid,) = layout.grids
    rows, cols = kept // grid.cols, kept % grid.cols
    shifts = torch.stack([torch.zeros_like(kept), rows, cols], dim=1)
    return torch.stack([shifts // 256, shifts % 256], dim=2).flatten(1).to(dtype)


def split_columns(embeddings: Sequence[Tensor], width: int) -> tuple[list[Tensor], Tensor]:
    """Takes the columns off again.

    Args:
        embeddings: of some items [K, width + 6], or of videos [K, width], which have none.

    Returns:
        (each item's [K, width], the shifts of all their tokens [3, sum of K] int64)
    """
    plain, shifts = [], []
    for item in embeddings:
        if item.shape[1] == width:
            shifts.append(torch.zeros(len(item), AXES, dtype=torch.int64, device=item.device))
        else:
            high, low = item[:, width:].to(torch.int64).unflatten(1, (AXES, 2)).unbind(2)
            shifts.append(high * 256 + low)
        plain.append(item[:, :width])
    return plain, torch.cat(shifts).T


def prompt_positions(
    tokens: list[int],
    features: Sequence[Any],
    num_whole: Callable[[Any], int],
    of_whole: Callable[[list[int], list[Any]], tuple[Tensor, int]],
) -> tuple[Tensor, int]:
    """Positions of a prompt whose images were reduced: an image's tokens all at its first one's.

    Args:
        tokens: [L] of the prompt.
        features: vLLM's `MultiModalFeatureSpec` of each image and video.
        num_whole: how many tokens one of them has before it is reduced.
        of_whole: vLLM's own function, for a prompt of whole images.

    Returns:
        ([3, L], by how much a generated token's position is ahead of its column)
    """
    whole: list[int] = []
    columns: list[int] = []
    specs, origins, at = [], [], 0
    for feature in sorted(features, key=lambda feature: feature.mm_position.offset):
        place = feature.mm_position
        columns += range(len(whole), len(whole) + place.offset - at)
        whole += tokens[at : place.offset]
        start, length = len(whole), num_whole(feature)
        if feature.modality == "image":
            origins.append((len(columns), place.length, start))
        specs.append(
            dataclasses.replace(
                feature, mm_position=dataclasses.replace(place, offset=start, length=length)
            )
        )
        columns += range(start, start + place.length)
        at = place.offset + place.length
        inside = tokens[place.offset : at]
        whole += inside + inside[:1] * (length - place.length)
    columns += range(len(whole), len(whole) + len(tokens) - at)
    whole += tokens[at:]
    positions, ahead = of_whole(whole, specs)
    short = positions[:, torch.tensor(columns, dtype=torch.int64)]
    for column, length, start in origins:
        short[:, column : column + length] = positions[:, start, None]
    return short, ahead + len(whole) - len(tokens)
