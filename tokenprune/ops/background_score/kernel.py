"""Scoring on the GPU: each token meets the tap vectors once; products of a row are added first."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from tokenprune.ops.background_merge.kernel import strongest_neighbor
from tokenprune.ops.common.launch import interpreting, launch_config, unit_stride

ROW_SUMS = tl.constexpr(27)  # of a token: nine outputs for each of the three rows that it is in
PARTS = tl.constexpr(3)  # of an anchor
SIDES = tl.constexpr(64)  # columns of the left and right taps, in turn; 54 are used
CENTERS = tl.constexpr(32)  # columns of the center taps, then an anchor's parts; 30 are used
COLUMNS = tl.constexpr(96)  # of the backward pass: 81 taps and zeros


@triton.jit
def _background_score_fwd_kernel(
    features,  # [B, N, D], strided
    vectors,  # [81, D]: left and right taps in turn, then center taps
    anchors,  # [B, PARTS, D]: add up to the anchor (FUSED only)
    offsets,  # [B] (FUSED only)
    sums,  # [B, ROW_SUMS, N]
    scores,  # [B, N] (FUSED)
    stride_batch,
    stride_token,
    num_tokens,
    cols,
    width,
    BLOCK_N: tl.constexpr,  # tokens of the first tile, one at each end a neighbor's alone
    BLOCK_T: tl.constexpr,  # of the second, 0 for none: tap vectors are read once for both
    BLOCK_D: tl.constexpr,
    FUSED: tl.constexpr,
    UPCAST: tl.constexpr,
):
    crop = tl.program_id(0).to(tl.int64)
    features += crop * stride_batch
    sums += crop * ROW_SUMS * num_tokens
    start = tl.program_id(1) * tokens_of(BLOCK_N, BLOCK_T)
    token = start - 1 + tl.arange(0, BLOCK_N)
    side_column = tl.arange(0, SIDES)[None, :]
    center_column = tl.arange(0, CENTERS)[None, :]
    part = center_column - ROW_SUMS
    is_part = (part >= 0) & (part < PARTS)

    sides = tl.zeros((BLOCK_N, SIDES), tl.float32)
    centers = tl.zeros((BLOCK_N, CENTERS), tl.float32)
    if BLOCK_T > 0:
        tail = start + BLOCK_N - 3 + tl.arange(0, BLOCK_T)
        tail_sides = tl.zeros((BLOCK_T, SIDES), tl.float32)
        tail_centers = tl.zeros((BLOCK_T, CENTERS), tl.float32)
    for first in range(0, width, BLOCK_D):
        channel = first + tl.arange(0, BLOCK_D)
        present = channel < width
        side_taps = tl.load(  # [BLOCK_D, SIDES]
            vectors + side_column * width + channel[:, None],
            mask=present[:, None] & (side_column < 2 * ROW_SUMS),
            other=0.0,
        )
        center_taps = tl.load(  # [BLOCK_D, CENTERS]
            vectors + (2 * ROW_SUMS + center_column) * width + channel[:, None],
            mask=present[:, None] & (center_column < ROW_SUMS),
            other=0.0,
        )
        if FUSED:
            anchor = tl.load(
                anchors + (crop * PARTS + part) * width + channel[:, None],
                mask=present[:, None] & is_part,
                other=0.0,
            )
            center_taps = tl.where(is_part, anchor, center_taps)
        if UPCAST:  # the interpreter multiplies bfloat16 as integers
            side_taps, center_taps = side_taps.to(tl.float32), center_taps.to(tl.float32)
        tile = load_tokens(features, token, channel, stride_token, num_tokens, width, UPCAST)
        sides = tl.dot(tile, side_taps, sides, input_precision="ieee")
        centers = tl.dot(tile, center_taps, centers, input_precision="ieee")
        if BLOCK_T > 0:
            tile = load_tokens(features, tail, channel, stride_token, num_tokens, width, UPCAST)
            tail_sides = tl.dot(tile, side_taps, tail_sides, input_precision="ieee")
            tail_centers = tl.dot(tile, center_taps, tail_centers, input_precision="ieee")

    offset = 0.0
    if FUSED:
        offset = tl.load(offsets + crop)
        scores += crop * num_tokens
    store_sums(sides, centers, token, sums, scores, offset, num_tokens, cols, BLOCK_N, FUSED)
    if BLOCK_T > 0:
        store_sums(
            tail_sides, tail_centers, tail, sums, scores, offset, num_tokens, cols, BLOCK_T, FUSED
        )


@triton.jit
def load_tokens(features, token, channel, stride_token, num_tokens, width, UPCAST: tl.constexpr):
    """[BLOCK, BLOCK_D], zeros for tokens and channels that are not there."""
    inside = (token >= 0) & (token < num_tokens)
    tile = tl.load(
        features + token[:, None].to(tl.int64) * stride_token + channel[None, :],
        mask=inside[:, None] & (channel < width)[None, :],
        other=0.0,
    )
    return tile.to(tl.float32) if UPCAST else tile


@triton.jit
def store_sums(
    sides,  # [BLOCK, SIDES]
    centers,  # [BLOCK, CENTERS]
    token,  # [BLOCK]
    sums,  # [ROW_SUMS, N]
    scores,  # [N]
    offset,
    num_tokens,
    cols,
    BLOCK: tl.constexpr,
    FUSED: tl.constexpr,
):
    """What a token and its two neighbors in the row add to the logits above, beside and below."""
    place = tl.arange(0, BLOCK)
    step = 2 * (tl.arange(0, SIDES) % 2) - 1
    source = tl.minimum(tl.maximum(place[:, None] + step[None, :], 0), BLOCK - 1)
    left, right = tl.split(tl.reshape(tl.gather(sides, source, 0), (BLOCK, CENTERS, 2)))
    column = tl.arange(0, CENTERS)[None, :]
    x = (token % cols)[:, None]
    left = tl.where((column < ROW_SUMS) & (x > 0), left, 0.0)
    right = tl.where((column < ROW_SUMS) & (x < cols - 1), right, 0.0)
    total = left + centers + right
    own = (place > 0) & (place < BLOCK - 1) & (token < num_tokens)
    tl.store(
        sums + column * num_tokens + token[:, None],
        total,
        mask=own[:, None] & (column < ROW_SUMS),
    )
    if FUSED:
        is_part = (column >= ROW_SUMS) & (column < ROW_SUMS + PARTS)
        tl.store(scores + token, tl.sum(tl.where(is_part, total, 0.0), 1) + offset, mask=own)


@triton.jit
def _background_logits_fwd_kernel(
    sums,  # [B, ROW_SUMS, N]
    bias,  # [9]
    logits,  # [B, N, 9] (not FUSED)
    parents,  # [B, N] int32 (FUSED)
    rows,
    cols,
    BLOCK_M: tl.constexpr,
    FUSED: tl.constexpr,
):
    num_tokens = rows * cols
    crop = tl.program_id(0).to(tl.int64)
    sums += crop * ROW_SUMS * num_tokens
    token = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = token < num_tokens
    slot = tl.arange(0, 16)
    total = tl.zeros((BLOCK_M, 16), tl.float32)
    for row in tl.static_range(3):
        source = token + (row - 1) * cols
        there = inside & (source >= 0) & (source < num_tokens)
        total += tl.load(
            sums + (row * 9 + slot)[None, :] * num_tokens + source[:, None],
            mask=there[:, None] & (slot[None, :] < 9),
            other=0.0,
        )
    total += tl.load(bias + slot, mask=slot < 9, other=0.0)[None, :]
    line = crop * num_tokens + token
    if FUSED:
        cell = tl.where(inside, token, 0)
        tl.store(parents + line, strongest_neighbor(total, cell, rows, cols), mask=inside)
    else:
        tl.store(
            logits + line[:, None] * 9 + slot[None, :],
            total,
            mask=inside[:, None] & (slot[None, :] < 9),
        )


@triton.constexpr_function
def tokens_of(block_n, block_t):
    """Tokens that a program adds up; a tile's first and last are read for their neighbors alone."""
    return block_n - 2 + (block_t - 2 if block_t else 0)


@triton.jit
def _background_score_bwd_kernel(
    grads,  # [B, N, 9] of the logits
    vectors,  # [COLUMNS, D]
    grad_features,  # [B, N, D]
    rows,
    cols,
    width,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    UPCAST: tl.constexpr,
):
    num_tokens = rows * cols
    crop = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = token < num_tokens
    y, x = (token // cols)[:, None], (token % cols)[:, None]
    low_column, high_column = tl.arange(0, 64)[None, :], 64 + tl.arange(0, 32)[None, :]
    # Tap (i, j) of token (y, x) went into the logits at (y-i+1, x-j+1).
    low = load_tap_grads(grads, crop, y, x, low_column, inside[:, None], rows, cols)
    high = load_tap_grads(grads, crop, y, x, high_column, inside[:, None], rows, cols)
    narrow = vectors.dtype.element_ty
    if not UPCAST:
        low, high = low.to(narrow), high.to(narrow)
    for first in range(0, width, BLOCK_D):
        channel = first + tl.arange(0, BLOCK_D)
        present = (channel < width)[None, :]
        low_taps = tl.load(
            vectors + low_column.trans(1, 0) * width + channel[None, :], mask=present, other=0.0
        )
        high_taps = tl.load(
            vectors + high_column.trans(1, 0) * width + channel[None, :], mask=present, other=0.0
        )
        if UPCAST:
            low_taps, high_taps = low_taps.to(tl.float32), high_taps.to(tl.float32)
        total = tl.dot(low, low_taps, input_precision="ieee")
        total = tl.dot(high, high_taps, total, input_precision="ieee")
        tl.store(
            grad_features + (crop * num_tokens + token[:, None]) * width + channel[None, :],
            total.to(grad_features.dtype.element_ty),
            mask=inside[:, None] & present,
        )


@triton.jit
def load_tap_grads(grads, crop, y, x, column, inside, rows, cols):
    """[M, columns]: what each product of a token weighs in the loss."""
    tap, output = column // 9, column % 9
    at_y, at_x = y - tap // 3 + 1, x - tap % 3 + 1
    there = inside & (column < 81) & (at_y >= 0) & (at_y < rows) & (at_x >= 0) & (at_x < cols)
    cell = (crop * rows + at_y) * cols + at_x
    return tl.load(grads + cell * 9 + output, mask=there, other=0.0).to(tl.float32)


def pad_taps(taps: Tensor) -> Tensor:
    """[81, D] -> [COLUMNS, D]."""
    return functional.pad(taps, (0, 0, 0, COLUMNS.value - 81)).contiguous()


def aligned(tensor: Tensor) -> Tensor:
    """[..., D] with zero channels up to a multiple of 16: single channels would spill registers."""
    surplus = -tensor.shape[-1] % 16
    return functional.pad(tensor, (0, surplus)) if surplus else tensor


def arrange_taps(taps: Tensor) -> Tensor:
    """[81, D] by row, column, output of a tap -> [81, D]: left and right in turn, then centers."""
    left, center, right = taps.unflatten(0, (3, 3, 9)).unbind(1)
    sides = torch.stack([left, right], dim=2)  # [3, 9, 2, D]
    return torch.cat([sides.flatten(0, 2), center.flatten(0, 1)])


def split_anchors(anchors: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, D] float32 -> [B, PARTS, D] in a narrow dtype that add up to it."""
    parts, rest = [], anchors
    for _ in range(PARTS.value):
        parts.append(rest.to(dtype))
        rest = rest - parts[-1].to(anchors.dtype)
    return torch.stack(parts, dim=1)


def launch_score(
    features: Tensor, grid_size: tuple[int, int], taps: Tensor, bias: Tensor
) -> Tensor:
    """[B, N, D] and [81, D] taps -> [B, N, 9] logits."""
    batch, num_tokens, _ = features.shape
    logits = features.new_empty(batch, num_tokens, 9, dtype=torch.float32)
    _launch(features, grid_size, taps, bias, _Tensors(logits=logits))
    return logits


def launch_parents(
    features: Tensor,
    grid_size: tuple[int, int],
    taps: Tensor,
    bias: Tensor,
    anchors: Tensor,
    offsets: Tensor,
) -> tuple[Tensor, Tensor]:
    """As `launch_score`, straight to ([B, N] int32 parents, [B, N] float32 scores of tokens)."""
    batch, num_tokens, _ = features.shape
    parents = features.new_empty(batch, num_tokens, dtype=torch.int32)
    scores = features.new_empty(batch, num_tokens, dtype=torch.float32)
    parts = split_anchors(aligned(anchors), features.dtype)
    fused = _Tensors(anchors=parts, offsets=offsets, parents=parents, scores=scores)
    _launch(features, grid_size, taps, bias, fused)
    return parents, scores


class _Tensors(NamedTuple):
    """What the kernels read and write in one of their two forms; None is what the other takes."""

    anchors: Tensor | None = None
    offsets: Tensor | None = None
    logits: Tensor | None = None
    parents: Tensor | None = None
    scores: Tensor | None = None


def _launch(
    features: Tensor,
    grid_size: tuple[int, int],
    taps: Tensor,
    bias: Tensor,
    tensors: _Tensors,
) -> None:
    features, taps = aligned(features), aligned(taps)
    batch, num_tokens, width = features.shape
    if batch == 0:
        return
    features = unit_stride(features)
    sums = features.new_empty(batch, ROW_SUMS.value, num_tokens, dtype=torch.float32)
    fused = tensors.logits is None
    config = launch_config("background_score_fwd", features)
    tiles = triton.cdiv(num_tokens, tokens_of(config["BLOCK_N"], config["BLOCK_T"]))
    _background_score_fwd_kernel[(batch, tiles)](
        features,
        arrange_taps(taps),
        tensors.anchors,
        tensors.offsets,
        sums,
        tensors.scores,
        features.stride(0),
        features.stride(1),
        num_tokens,
        grid_size[1],
        width,
        FUSED=fused,
        UPCAST=interpreting(),
        **config,
    )
    config = launch_config("background_logits_fwd", features)
    _background_logits_fwd_kernel[(batch, triton.cdiv(num_tokens, config["BLOCK_M"]))](
        sums,
        bias.float(),
        tensors.logits,
        tensors.parents,
        *grid_size,
        FUSED=fused,
        **config,
    )


def launch_score_bwd(grads: Tensor, grid_size: tuple[int, int], taps: Tensor) -> Tensor:
    """[B, N, 9] gradient of the logits -> [B, N, D] gradient of the features."""
    batch, num_tokens, _ = grads.shape
    own_width, taps = taps.shape[1], aligned(taps)
    width = taps.shape[1]
    grad_features = grads.new_empty(batch, num_tokens, width, dtype=taps.dtype)
    config = launch_config("background_score_bwd", taps)
    if batch:
        _background_score_bwd_kernel[(batch, triton.cdiv(num_tokens, config["BLOCK_N"]))](
            grads.contiguous(),
            pad_taps(taps),
            grad_features,
            *grid_size,
            width,
            UPCAST=interpreting(),
            **config,
        )
    return grad_features[..., :own_width].contiguous()
