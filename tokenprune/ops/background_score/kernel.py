"""Scoring on the GPU: each crop's tokens meet the tap vectors once, in one program per crop."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from tokenprune.ops.background_merge.kernel import strongest_neighbor
from tokenprune.ops.common.launch import interpreting, launch_config, num_programs, unit_stride

COLUMNS = tl.constexpr(96)  # 81 taps, the three parts of the anchor, and zeros
ANCHOR = tl.constexpr(81)
PARTS = tl.constexpr(3)


@triton.jit
def _background_score_fwd_kernel(
    features,  # [B, N, D], strided
    vectors,  # [COLUMNS, D]: 81 taps, then zeros
    anchors,  # [B, PARTS, D]: add up to the anchor (FUSED only)
    offsets,  # [B] (FUSED only)
    bias,  # [9]
    products,  # [programs, N, COLUMNS] scratch, one slice per program
    logits,  # [B, N, 9] (not FUSED)
    parents,  # [B, N] int32 (FUSED)
    scores,  # [B, N] (FUSED)
    batch,
    stride_batch,
    stride_token,
    rows,
    cols,
    width,
    BLOCK_N: tl.constexpr,  # tokens per product
    BLOCK_M: tl.constexpr,  # tokens per sum of taps
    BLOCK_D: tl.constexpr,
    FUSED: tl.constexpr,
    UPCAST: tl.constexpr,
):
    num_tokens = rows * cols
    program = tl.program_id(0)
    products += program.to(tl.int64) * num_tokens * COLUMNS
    low_column = tl.arange(0, 64)
    high_column = 64 + tl.arange(0, 32)
    slot = tl.arange(0, 16)

    for crop in range(program, batch, tl.num_programs(0)):
        crop = tl.cast(crop, tl.int64)
        for start in range(0, num_tokens, BLOCK_N):
            token = start + tl.arange(0, BLOCK_N)
            low = tl.zeros((BLOCK_N, 64), tl.float32)
            high = tl.zeros((BLOCK_N, 32), tl.float32)
            for first in range(0, width, BLOCK_D):
                channel = first + tl.arange(0, BLOCK_D)
                present = channel < width
                tile = tl.load(  # [BLOCK_N, BLOCK_D]
                    features
                    + crop * stride_batch
                    + token[:, None].to(tl.int64) * stride_token
                    + channel[None, :],
                    mask=(token[:, None] < num_tokens) & present[None, :],
                    other=0.0,
                )
                low_taps = tl.load(  # [BLOCK_D, 64]
                    vectors + low_column[None, :] * width + channel[:, None],
                    mask=present[:, None],
                    other=0.0,
                )
                high_taps = tl.load(  # [BLOCK_D, 32]
                    vectors + high_column[None, :] * width + channel[:, None],
                    mask=present[:, None],
                    other=0.0,
                )
                if FUSED:
                    part = high_column - ANCHOR
                    is_anchor = (part >= 0) & (part < PARTS)
                    anchor = tl.load(
                        anchors
                        + crop * PARTS * width
                        + tl.where(is_anchor, part, 0)[None, :] * width
                        + channel[:, None],
                        mask=present[:, None] & is_anchor[None, :],
                        other=0.0,
                    )
                    high_taps = tl.where(is_anchor[None, :], anchor, high_taps)
                if UPCAST:  # the interpreter multiplies bfloat16 as integers
                    tile = tile.to(tl.float32)
                    low_taps = low_taps.to(tl.float32)
                    high_taps = high_taps.to(tl.float32)
                low = tl.dot(tile, low_taps, low, input_precision="ieee")
                high = tl.dot(tile, high_taps, high, input_precision="ieee")
            line = products + token[:, None] * COLUMNS
            stored = token[:, None] < num_tokens
            tl.store(line + low_column[None, :], low, mask=stored)
            tl.store(line + high_column[None, :], high, mask=stored)
        tl.debug_barrier()  # the shifted reads below cross the tiles above

        for start in range(0, num_tokens, BLOCK_M):
            token = start + tl.arange(0, BLOCK_M)
            y, x = token // cols, token % cols
            inside = token < num_tokens
            total = tl.zeros((BLOCK_M, 16), tl.float32)
            for tap in tl.static_range(9):
                from_y, from_x = y + tap // 3 - 1, x + tap % 3 - 1
                there = inside & (from_y >= 0) & (from_y < rows) & (from_x >= 0) & (from_x < cols)
                total += tl.load(
                    products
                    + (from_y * cols + from_x)[:, None] * COLUMNS
                    + (tap * 9 + slot)[None, :],
                    mask=there[:, None] & (slot[None, :] < 9),
                    other=0.0,
                )
            total += tl.load(bias + slot, mask=slot < 9, other=0.0)[None, :]
            line = crop * num_tokens + token
            if FUSED:
                cell = tl.where(inside, token, 0)
                tl.store(parents + line, strongest_neighbor(total, cell, rows, cols), mask=inside)
                score = tl.zeros((BLOCK_M,), tl.float32) + tl.load(offsets + crop)
                for part in tl.static_range(PARTS):
                    score += tl.load(
                        products + token * COLUMNS + ANCHOR + part, mask=inside, other=0.0
                    )
                tl.store(scores + line, score, mask=inside)
            else:
                tl.store(
                    logits + line[:, None] * 9 + slot[None, :],
                    total,
                    mask=inside[:, None] & (slot[None, :] < 9),
                )
        tl.debug_barrier()  # the scratch is written again for the next crop


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
    parts = split_anchors(anchors, features.dtype)
    fused = _Tensors(anchors=parts, offsets=offsets, parents=parents, scores=scores)
    _launch(features, grid_size, taps, bias, fused)
    return parents, scores


class _Tensors(NamedTuple):
    """What the kernel reads and writes in one of its two forms; None is what the other takes."""

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
    batch, num_tokens, width = features.shape
    if batch == 0:
        return
    features = unit_stride(features)
    programs = min(batch, num_programs(features.device))
    products = features.new_empty(programs, num_tokens, COLUMNS.value, dtype=torch.float32)
    _background_score_fwd_kernel[(programs,)](
        features,
        pad_taps(taps),
        tensors.anchors,
        tensors.offsets,
        bias.float(),
        products,
        tensors.logits,
        tensors.parents,
        tensors.scores,
        batch,
        features.stride(0),
        features.stride(1),
        *grid_size,
        width,
        FUSED=tensors.logits is None,
        UPCAST=interpreting(),
        **launch_config("background_score_fwd", features),
    )


def launch_score_bwd(grads: Tensor, grid_size: tuple[int, int], taps: Tensor) -> Tensor:
    """[B, N, 9] gradient of the logits -> [B, N, D] gradient of the features."""
    batch, num_tokens, _ = grads.shape
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
    return grad_features
