"""Selecting on the GPU: pointers to roots, scores to clusters, clusters to means."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenprune.ops.anchored_select.selection import Selection
from tokenprune.ops.background_merge.kernel import jump, merge_cycles, padded
from tokenprune.ops.cluster_mean.kernel import Members, launch_mean
from tokenprune.ops.common.launch import launch_config, unit_stride
from tokenprune.ops.common.quotas import Quotas


@triton.jit
def _segmented_sum(left, left_first, right, right_first):
    return tl.where(right_first != 0, right, left + right), left_first | right_first


@triton.jit
def _larger(left, right):
    return tl.maximum(left, right)


@triton.jit
def descending(score):
    """float32 -> int32 that sorts ascending where the score sorts descending, NaN first."""
    score = tl.where(score == score, score + 0.0, float("nan"))  # one NaN, one zero
    bits = score.to(tl.int32, bitcast=True)
    return ~tl.where(score == score, bits ^ ((bits >> 31) & 0x7FFFFFFF), 0x7FFFFFFF)


@triton.jit
def _anchored_select_fwd_kernel(
    pointers,  # [B, N] int32 parents, or roots where DOUBLINGS is 0
    scores,  # [B, N] float32 of tokens
    sums,  # [B, N] float32 scratch: cluster sums by root
    counts,  # [B, N] int32 scratch: cluster sizes by root
    starts,  # [B, N] int32 scratch: where a root's members start in `order`
    roots,  # [B, N] int64
    order,  # [B, N] int32: tokens sorted by root, then by token
    keep_indices,  # [B, K] or packed [T] int64, ascending in each crop
    valid,  # [B, K] or [T] int8
    keep_scores,  # [B, K] or [T] float32
    cu_seqlens,  # [B + 1] int32 (RAGGED only)
    num_tokens,
    num_keep,  # not RAGGED only
    doublings,
    PADDED: tl.constexpr,  # power of two, at least N
    MERGE: tl.constexpr,
    RAGGED: tl.constexpr,
):
    crop = tl.program_id(0).to(tl.int64)
    token = tl.arange(0, PADDED)
    inside = token < num_tokens
    row = crop * num_tokens + token

    pointer = tl.load(pointers + row, mask=inside, other=0)
    pointer = tl.where(inside, pointer, token)
    root = merge_cycles(pointer, token, doublings) if MERGE else jump(pointer, doublings)
    tl.store(roots + row, root.to(tl.int64), mask=inside)
    tl.store(counts + row, 0, mask=inside)

    # Members of a cluster side by side, in raster order: sums are the same in every run.
    key = tl.sort(tl.where(inside, root * PADDED + token, 0x7FFFFFFF))
    present = key != 0x7FFFFFFF
    member = tl.where(present, key % PADDED, 0)
    cluster = tl.where(present, key // PADDED, PADDED)
    tl.store(order + row, member, mask=inside)
    score = tl.load(scores + crop * num_tokens + member, mask=present, other=0.0)
    before = tl.gather(cluster, tl.maximum(token - 1, 0), 0)
    after = tl.gather(cluster, tl.minimum(token + 1, PADDED - 1), 0)
    first = ((token == 0) | (before != cluster)).to(tl.int32)
    last = present & ((token == PADDED - 1) | (after != cluster))
    total, _ = tl.associative_scan((score, first), 0, _segmented_sum)
    start = tl.associative_scan(tl.where(first != 0, token, 0), 0, _larger)
    tl.debug_barrier()
    cell = crop * num_tokens + cluster
    tl.store(sums + cell, total, mask=last)
    tl.store(counts + cell, token - start + 1, mask=last)
    tl.store(starts + cell, start, mask=last)
    tl.debug_barrier()

    first_slot = crop * num_keep
    if RAGGED:
        first_slot = tl.load(cu_seqlens + crop).to(tl.int64)
        num_keep = tl.load(cu_seqlens + crop + 1) - first_slot.to(tl.int32)
    # The best clusters; empty cells come last, ties go to the lowest index.
    count = tl.load(counts + row, mask=inside, other=0)
    total = tl.load(sums + row, mask=count > 0, other=0.0)
    mean = tl.where(count > 0, total / tl.maximum(count, 1).to(tl.float32), -float("inf"))
    rank = (descending(mean).to(tl.int64) << 32) | token.to(tl.int64)
    rank = tl.sort(tl.where(inside, rank, 0x7FFFFFFFFFFFFFFF))
    best = (rank & 0xFFFFFFFF).to(tl.int32)
    kept = tl.sort(tl.where(token < num_keep, best, 0x7FFFFFFF))
    slot = token < num_keep
    kept = tl.where(slot, kept, 0)
    count = tl.load(counts + crop * num_tokens + kept, mask=slot, other=0)
    total = tl.load(sums + crop * num_tokens + kept, mask=slot & (count > 0), other=0.0)
    mean = tl.where(count > 0, total / tl.maximum(count, 1).to(tl.float32), -float("inf"))
    out = first_slot + token
    tl.store(keep_indices + out, kept.to(tl.int64), mask=slot)
    tl.store(valid + out, (count > 0).to(tl.int8), mask=slot)
    tl.store(keep_scores + out, mean, mask=slot)


@triton.jit
def _anchor_score_fwd_kernel(
    features,  # [B, N, D], strided
    anchors,  # [B, D] float32
    offsets,  # [B] float32
    scores,  # [B, N] float32
    stride_batch,
    stride_token,
    num_tokens,
    width,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    crop = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = token < num_tokens
    total = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for first in range(0, width, BLOCK_D):
        channel = first + tl.arange(0, BLOCK_D)
        present = channel < width
        tile = tl.load(  # [BLOCK_N, BLOCK_D]
            features
            + crop * stride_batch
            + token[:, None].to(tl.int64) * stride_token
            + channel[None, :],
            mask=inside[:, None] & present[None, :],
            other=0.0,
        )
        anchor = tl.load(anchors + crop * width + channel, mask=present, other=0.0)
        total += tile.to(tl.float32) * anchor[None, :]
    score = tl.sum(total, 1) + tl.load(offsets + crop)
    tl.store(scores + crop * num_tokens + token, score, mask=inside)


def launch_anchor_scores(features: Tensor, anchors: Tensor, offsets: Tensor) -> Tensor:
    """[B, N, D], [B, D] and [B] -> [B, N] float32 scores of tokens."""
    batch, num_tokens, width = features.shape
    scores = features.new_empty(batch, num_tokens, dtype=torch.float32)
    features = unit_stride(features)
    config = launch_config("anchor_score_fwd", features)
    if batch:
        _anchor_score_fwd_kernel[(batch, triton.cdiv(num_tokens, config["BLOCK_N"]))](
            features,
            anchors.contiguous(),
            offsets.contiguous(),
            scores,
            features.stride(0),
            features.stride(1),
            num_tokens,
            width,
            **config,
        )
    return scores


def launch_select(
    features: Tensor,
    pointers: Tensor,
    token_scores: Tensor,
    quotas: Quotas,
    doublings: int,
    merge: bool,
) -> Selection:
    """Pointers [B, N] int32 and scores [B, N] of tokens -> the clusters that score best."""
    batch, num_tokens, width = features.shape
    features = unit_stride(features)

    def per_token(dtype: torch.dtype) -> Tensor:
        return features.new_empty(batch, num_tokens, dtype=dtype)

    slots = quotas.shape(batch)
    roots, order = per_token(torch.int64), per_token(torch.int32)
    counts, starts = per_token(torch.int32), per_token(torch.int32)
    keep_indices = features.new_empty(slots, dtype=torch.int64)
    valid = features.new_empty(slots, dtype=torch.int8)
    scores = features.new_empty(slots, dtype=torch.float32)
    means = features.new_empty(*slots, width)
    if batch:
        _anchored_select_fwd_kernel[(batch,)](
            pointers,
            token_scores,
            per_token(torch.float32),
            counts,
            starts,
            roots,
            order,
            keep_indices,
            valid,
            scores,
            quotas.cu_seqlens,
            num_tokens,
            quotas.largest,
            doublings,
            PADDED=padded(num_tokens),
            MERGE=merge,
            RAGGED=quotas.cu_seqlens is not None,
            **launch_config("anchored_select_fwd", features),
        )
    crops = None if quotas.cu_seqlens is None else quotas.crops(batch, features.device)
    launch_mean(features, Members(order, starts, counts), keep_indices, means, crops=crops)
    return Selection(means, keep_indices, valid.bool(), roots, scores)
