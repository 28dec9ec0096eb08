"""Max-min selection on the GPU: one program per crop, the loop over kept tokens inside."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenprune.ops.background_merge.kernel import padded
from tokenprune.ops.common.cosine import SMALLEST_NORM, rounding_of
from tokenprune.ops.common.launch import interpreting, launch_config, unit_stride

ROUNDING = tl.constexpr(rounding_of(torch.float32))
SMALLEST = tl.constexpr(SMALLEST_NORM)


@triton.jit
def load_tile(base, token, channel, stride, num_tokens, width):
    """[M, BLOCK_D] of a [N, D] matrix."""
    return tl.load(
        base + token[:, None].to(tl.int64) * stride + channel[None, :],
        mask=(token < num_tokens)[:, None] & (channel < width)[None, :],
        other=0.0,
    )


@triton.jit
def first_largest(value, token):
    """The lowest token of the largest value; NaN is the largest, as in torch.argmax."""
    value = tl.where(value == value, value, float("inf"))
    return tl.min(tl.where(value == tl.max(value, 0), token, 0x7FFFFFFF), 0)


@triton.jit
def cosine_distance(similarity):
    distance = 1.0 - similarity
    return tl.where(distance < ROUNDING, 0.0, distance)


@triton.jit
def store_inverse_norms(
    features, norms, stride_token, num_tokens, width, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr
):
    """[N, D] of one crop -> [N] float32."""
    for start in range(0, num_tokens, BLOCK_N):
        token = start + tl.arange(0, BLOCK_N)
        total = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
        for first in range(0, width, BLOCK_D):
            channel = first + tl.arange(0, BLOCK_D)
            tile = load_tile(features, token, channel, stride_token, num_tokens, width)
            tile = tile.to(tl.float32)
            total += tile * tile
        norm = tl.sqrt(tl.sum(total, 1))
        tl.store(norms + token, 1.0 / tl.maximum(norm, SMALLEST), mask=token < num_tokens)


@triton.jit
def store_products(
    features,
    products,
    best,
    stride_token,
    num_tokens,
    width,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The products of token `best` with every token of the crop -> [N] float32."""
    for start in range(0, num_tokens, BLOCK_N):
        token = start + tl.arange(0, BLOCK_N)
        total = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
        for first in range(0, width, BLOCK_D):
            channel = first + tl.arange(0, BLOCK_D)
            tile = load_tile(features, token, channel, stride_token, num_tokens, width)
            row = tl.load(
                features + tl.cast(best, tl.int64) * stride_token + channel,
                mask=channel < width,
                other=0.0,
            )
            total += tile.to(tl.float32) * row.to(tl.float32)[None, :]
        tl.store(products + token, tl.sum(total, 1), mask=token < num_tokens)


@triton.jit
def _max_min_order_fwd_kernel(
    features,  # [B, N, D], strided
    norms,  # [B, N] float32 scratch: inverse norms
    products,  # [B, N] float32 scratch
    chosen,  # [B, K] int64
    distances,  # [B, K] float32
    stride_batch,
    stride_token,
    num_tokens,
    num_keep,
    width,
    PADDED: tl.constexpr,  # power of two, at least N
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    UPCAST: tl.constexpr,
):
    crop = tl.program_id(0).to(tl.int64)
    features += crop * stride_batch
    norms += crop * num_tokens
    products += crop * num_tokens
    store_inverse_norms(features, norms, stride_token, num_tokens, width, BLOCK_N, BLOCK_D)
    tl.debug_barrier()  # norms cross the tiles above

    # The largest similarity of each token to any other, N x N never stored.
    for start in range(0, num_tokens, BLOCK_N):
        token = start + tl.arange(0, BLOCK_N)
        largest = tl.full((BLOCK_N,), -1.0, tl.float32)
        for other_start in range(0, num_tokens, BLOCK_N):
            other = other_start + tl.arange(0, BLOCK_N)
            total = tl.zeros((BLOCK_N, BLOCK_N), tl.float32)
            for first in range(0, width, BLOCK_D):
                channel = first + tl.arange(0, BLOCK_D)
                rows = load_tile(features, token, channel, stride_token, num_tokens, width)
                columns = load_tile(features, other, channel, stride_token, num_tokens, width)
                if UPCAST:  # the interpreter multiplies bfloat16 as integers
                    rows, columns = rows.to(tl.float32), columns.to(tl.float32)
                total = tl.dot(rows, tl.trans(columns), total, input_precision="ieee")
            scale = tl.load(norms + other, mask=other < num_tokens, other=0.0)
            own = tl.load(norms + token, mask=token < num_tokens, other=0.0)
            similarity = total * own[:, None] * scale[None, :]
            counted = (other < num_tokens)[None, :] & (token[:, None] != other[None, :])
            largest = tl.maximum(largest, tl.max(tl.where(counted, similarity, -1.0), 1))
        tl.store(products + token, largest, mask=token < num_tokens)
    tl.debug_barrier()

    token = tl.arange(0, PADDED)
    inside = token < num_tokens
    scale = tl.load(norms + token, mask=inside, other=0.0)
    nearest = cosine_distance(tl.load(products + token, mask=inside, other=1.0))
    free = inside
    for step in range(num_keep):
        best = first_largest(tl.where(free, nearest, -float("inf")), token)
        tl.store(chosen + crop * num_keep + step, best.to(tl.int64))
        found = tl.sum(tl.where(token == best, nearest, 0.0), 0)
        tl.store(distances + crop * num_keep + step, found)
        free = free & (token != best)
        tl.debug_barrier()  # all have read the products before they change
        store_products(features, products, best, stride_token, num_tokens, width, BLOCK_N, BLOCK_D)
        tl.debug_barrier()
        similarity = tl.load(products + token, mask=inside, other=0.0)
        to_best = cosine_distance(similarity * scale * tl.load(norms + best))
        nearest = tl.where(step == 0, to_best, tl.minimum(nearest, to_best))


def launch(features: Tensor, num_keep: int) -> tuple[Tensor, Tensor]:
    """[B, N, D] -> ([B, K] int64 in the order chosen, [B, K] float32 distances)."""
    batch, num_tokens, width = features.shape
    features = unit_stride(features)
    norms = features.new_empty(batch, num_tokens, dtype=torch.float32)
    order = features.new_empty(batch, num_keep, dtype=torch.int64)
    distances = features.new_empty(batch, num_keep, dtype=torch.float32)
    if batch and num_keep:
        _max_min_order_fwd_kernel[(batch,)](
            features,
            norms,
            torch.empty_like(norms),
            order,
            distances,
            features.stride(0),
            features.stride(1),
            num_tokens,
            num_keep,
            width,
            PADDED=padded(num_tokens),
            UPCAST=interpreting(),
            **launch_config("max_min_order_fwd", features),
        )
    return order, distances
