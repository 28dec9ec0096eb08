"""Selecting on the GPU: pointers to roots, scores to clusters, clusters to means."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenprune.ops.anchored_select.selection import Selection
from tokenprune.ops.background_merge.kernel import jump, merge_cycles
from tokenprune.ops.cluster_mean.kernel import Members, launch_mean
from tokenprune.ops.common.launch import launch_config, launch_config_of_crops, unit_stride
from tokenprune.ops.common.quotas import Quotas


@triton.jit
def _segmented(left, left_first, left_start, right, right_first, right_start):
    """Joins two runs of (sum, whether a cluster starts in it, where its last cluster starts)."""
    total = tl.where(right_first != 0, right, left + right)
    start = tl.where(right_first != 0, right_start, left_start)
    return total, left_first | right_first, start


@triton.jit
def descending(score):
    """float32 -> uint32 that ascends where the score descends, NaN first."""
    score = tl.where(score == score, score + 0.0, float("nan"))  # one NaN, one zero
    bits = score.to(tl.int32, bitcast=True)
    signed = ~tl.where(score == score, bits ^ ((bits >> 31) & 0x7FFFFFFF), 0x7FFFFFFF)
    return signed.to(tl.uint32, bitcast=True) ^ 0x80000000


@triton.jit
def sort_by_root(root, token, inside, scratch, num_tokens, PADDED: tl.constexpr):
    """[PADDED] roots -> root * PADDED + token, sorted; a radix sort of two bits a round.

    `scratch` holds num_tokens int32 of this crop alone. Outside elements come last.
    """
    key = tl.where(inside, root * PADDED + token, 0x7FFFFFFF)
    shift = 0
    while (num_tokens - 1) >> shift > 0:  # roots have no higher bits
        bucket = ((key // PADDED >> shift) & 3) * 16
        one = tl.where(inside, tl.full((PADDED,), 1, tl.int64) << bucket, 0)
        before = tl.cumsum(one, 0) - one  # four counts of 16 bits
        starts = tl.sum(one, 0) * 0x1000100010000  # sums of the counts of smaller buckets
        place = ((before >> bucket) & 0xFFFF) + ((starts >> bucket) & 0xFFFF)
        tl.debug_barrier()  # all have read what the last round left
        tl.store(scratch + place, key, mask=inside)
        tl.debug_barrier()
        key = tl.load(scratch + token, mask=inside, other=0x7FFFFFFF)
        shift += 2
    tl.debug_barrier()
    return key


@triton.jit
def smallest(key, inside, number):
    """uint32 keys [N] -> (which are the `number` smallest, [N] how many of them come before).

    Ties go to the lowest index. The largest of them is found bit by bit, with one count for each.
    """
    largest = tl.zeros((), tl.uint32)
    for bit in range(32):
        trial = largest | (tl.full((), 0x80000000, tl.uint32) >> bit)
        below = tl.sum((inside & (key < trial)).to(tl.int32), 0)
        largest = tl.where(below < number, trial, largest)
    less = (inside & (key < largest)).to(tl.int32)
    equal = (inside & (key == largest)).to(tl.int32)
    needed = number - tl.sum(less, 0)
    # Two counts in one scan; each is at most N, far less than 2^16.
    before = tl.cumsum((less << 16) | equal, 0) - ((less << 16) | equal)
    equal_before = before & 0xFFFF
    taken = (less != 0) | ((equal != 0) & (equal_before < needed))
    return taken, (before >> 16) + tl.minimum(equal_before, needed)


@triton.jit
def _anchored_select_fwd_kernel(
    pointers,  # [B, N] int32 parents, or roots where DOUBLINGS is 0
    scores,  # [B, N] float32 of tokens
    runs,  # [B, N] int64 scratch by root: sum of scores, start in `order`, number of members
    counts,  # [B, N] int32: cluster sizes by root
    starts,  # [B, N] int32: where a root's members start in `order`
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
    first_token = crop * num_tokens
    row = first_token + token

    pointer = tl.load(pointers + row, mask=inside, other=0)
    pointer = tl.where(inside, pointer, token)
    root = merge_cycles(pointer, token, doublings) if MERGE else jump(pointer, doublings)
    tl.store(roots + row, root.to(tl.int64), mask=inside)
    tl.store(runs + row, tl.zeros((PADDED,), tl.int64), mask=inside)

    # Members of a cluster side by side, in raster order: sums are the same in every run.
    key = sort_by_root(root, token, inside, order + first_token, num_tokens, PADDED)
    member = tl.where(inside, key % PADDED, 0)
    cluster = tl.where(inside, key // PADDED, PADDED)
    tl.store(order + row, member, mask=inside)
    score = tl.load(scores + first_token + member, mask=inside, other=0.0)
    before = tl.gather(cluster, tl.maximum(token - 1, 0), 0)
    after = tl.gather(cluster, tl.minimum(token + 1, PADDED - 1), 0)
    first = ((token == 0) | (before != cluster)).to(tl.int32)
    last = inside & ((token == PADDED - 1) | (after != cluster))
    total, _, start = tl.associative_scan(
        (score, first, tl.where(first != 0, token, 0)), 0, _segmented
    )
    # One store by root in place of three.
    run = (
        (total.to(tl.int32, bitcast=True).to(tl.int64) << 32) | (start << 16) | (token - start + 1)
    )
    tl.debug_barrier()
    tl.store(runs + first_token + cluster, run, mask=last)
    tl.debug_barrier()
    run = tl.load(runs + row, mask=inside, other=0)
    count = (run & 0xFFFF).to(tl.int32)
    tl.store(counts + row, count, mask=inside)
    tl.store(starts + row, ((run >> 16) & 0xFFFF).to(tl.int32), mask=inside)
    total = (run >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    mean = tl.where(count > 0, total / tl.maximum(count, 1).to(tl.float32), -float("inf"))

    first_slot = crop * num_keep
    if RAGGED:
        first_slot = tl.load(cu_seqlens + crop).to(tl.int64)
        num_keep = tl.load(cu_seqlens + crop + 1) - first_slot.to(tl.int32)
    # The best clusters in ascending order; empty cells rank last.
    kept, slot = smallest(descending(mean), inside, num_keep)
    out = first_slot + slot
    tl.store(keep_indices + out, token.to(tl.int64), mask=kept)
    tl.store(valid + out, (count > 0).to(tl.int8), mask=kept)
    tl.store(keep_scores + out, mean, mask=kept)


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
            per_token(torch.int64),
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
            MERGE=merge,
            RAGGED=quotas.cu_seqlens is not None,
            **launch_config_of_crops("anchored_select_fwd", features, num_tokens),
        )
    crops = None if quotas.cu_seqlens is None else quotas.crops(batch, features.device)
    launch_mean(features, Members(order, starts, counts), keep_indices, means, crops=crops)
    return Selection(means, keep_indices, valid.bool(), roots, scores)
