"""Greedy selection on the GPU: one program for a crop, the loop over kept tokens inside."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenprune.ops.common.cosine import SMALLEST_NORM, rounding_of
from tokenprune.ops.common.launch import (
    interpreting,
    launch_config,
    num_programs,
    padded,
    unit_stride,
)

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
def first_largest(value, free, token):
    """The lowest free token of the largest value; NaN is the largest, as in torch.argmax."""
    value = tl.where(value == value, value, float("inf"))
    value = tl.where(free, value, -float("inf"))
    return tl.min(tl.where(free & (value == tl.max(value, 0)), token, 0x7FFFFFFF), 0)


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
def cosine_tile(
    features,
    norms,
    token,
    other,
    stride_token,
    num_tokens,
    width,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """The similarity of BLOCK_N tokens to as many others -> [BLOCK_N, BLOCK_N] float32."""
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
    return total * own[:, None] * scale[None, :]


@triton.jit
def store_largest(
    features,
    norms,
    largest,
    stride_token,
    num_tokens,
    width,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """The largest similarity of each token to any other -> [N] float32, N x N never stored."""
    for start in range(0, num_tokens, BLOCK_N):
        token = start + tl.arange(0, BLOCK_N)
        found = tl.full((BLOCK_N,), -1.0, tl.float32)
        for other_start in range(0, num_tokens, BLOCK_N):
            other = other_start + tl.arange(0, BLOCK_N)
            similarity = cosine_tile(
                features, norms, token, other, stride_token, num_tokens, width,
                BLOCK_N, BLOCK_D, UPCAST,
            )  # fmt: skip
            counted = (other < num_tokens)[None, :] & (token[:, None] != other[None, :])
            found = tl.maximum(found, tl.max(tl.where(counted, similarity, -1.0), 1))
        tl.store(largest + token, found, mask=token < num_tokens)


@triton.jit
def store_pairs(
    features,
    norms,
    pairs,
    stride_token,
    stride_pair,
    num_tokens,
    width,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """The similarity of all pairs of a crop -> [N, N] float32."""
    for start in range(0, num_tokens, BLOCK_N):
        token = start + tl.arange(0, BLOCK_N)
        line = token[:, None].to(tl.int64) * stride_pair
        for other_start in range(0, num_tokens, BLOCK_N):
            other = other_start + tl.arange(0, BLOCK_N)
            similarity = cosine_tile(
                features, norms, token, other, stride_token, num_tokens, width,
                BLOCK_N, BLOCK_D, UPCAST,
            )  # fmt: skip
            inside = (token < num_tokens)[:, None] & (other < num_tokens)[None, :]
            tl.store(pairs + line + other[None, :], similarity, mask=inside)


@triton.jit
def store_gains(
    pairs,
    covered,
    gains,
    stride_pair,
    num_tokens,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """What each token would add to what is covered, [N] -> [N] float32."""
    for start in range(0, num_tokens, BLOCK_N):
        token = start + tl.arange(0, BLOCK_N)
        added = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
        for first in range(0, num_tokens, BLOCK_D):
            other = first + tl.arange(0, BLOCK_D)
            tile = load_tile(pairs, token, other, stride_pair, num_tokens, num_tokens)
            bound = tl.load(covered + other, mask=other < num_tokens, other=0.0)
            added += tl.maximum(tile - bound[None, :], 0.0)
        tl.store(gains + token, tl.sum(added, 1), mask=token < num_tokens)


@triton.jit
def _greedy_order_fwd_kernel(
    features,  # [B, N, D], strided
    weights,  # [B, N] float32: what the objective weighs tokens by
    norms,  # [B, N] float32 scratch: inverse norms, then gains where pairs are stored
    products,  # [B, N] float32 scratch: of the token chosen last, or how far each is covered
    factor,  # [B, K, N] float32 scratch: rows of the Cholesky factor ("dpp")
    pairs,  # [B, N, N] float32 scratch, rows strided ("coverage")
    chosen,  # [B, K] int64
    values,  # [B, K] float32
    stride_batch,
    stride_token,
    stride_pair,
    num_tokens,
    num_keep,
    width,
    mmr_lambda,
    parallel_k,
    OBJECTIVE: tl.constexpr,  # "max_min", "dpp", "coverage" or "mmr"
    PADDED: tl.constexpr,  # power of two, at least N
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    UPCAST: tl.constexpr,
):
    crop = tl.program_id(0).to(tl.int64)
    features += crop * stride_batch
    weights += crop * num_tokens
    norms += crop * num_tokens
    products += crop * num_tokens
    factor += crop * num_keep * num_tokens
    pairs += crop * num_tokens * stride_pair
    store_inverse_norms(features, norms, stride_token, num_tokens, width, BLOCK_N, BLOCK_D)
    tl.debug_barrier()  # norms cross the tiles above

    if OBJECTIVE == "max_min":
        store_largest(
            features, norms, products, stride_token, num_tokens, width,
            BLOCK_N, BLOCK_D, UPCAST,
        )  # fmt: skip
        tl.debug_barrier()
    elif OBJECTIVE == "coverage":
        store_pairs(
            features, norms, pairs, stride_token, stride_pair, num_tokens, width,
            BLOCK_N, BLOCK_D, UPCAST,
        )  # fmt: skip

    # `rank` chooses; `running` is what the objective keeps of the tokens chosen so far.
    token = tl.arange(0, PADDED)
    inside = token < num_tokens
    scale = tl.load(norms + token, mask=inside, other=0.0)
    wanted = tl.load(weights + token, mask=inside, other=0.0)
    if OBJECTIVE == "max_min":
        rank = cosine_distance(tl.load(products + token, mask=inside, other=1.0))
        running = rank
    elif OBJECTIVE == "dpp":
        scale *= wanted
        rank = wanted * wanted
        running = rank
    elif OBJECTIVE == "coverage":
        running = tl.zeros((PADDED,), tl.float32)
        rank = running
    else:
        wanted *= mmr_lambda
        rank = wanted
        running = tl.full((PADDED,), -float("inf"), tl.float32)
    free = inside

    for step in range(num_keep):
        if OBJECTIVE == "coverage":
            tl.debug_barrier()  # all have read the norms, or gains, before they change
            tl.store(products + token, running, mask=inside)
            tl.debug_barrier()
            store_gains(pairs, products, norms, stride_pair, num_tokens, BLOCK_N, BLOCK_D)
            tl.debug_barrier()
            rank = wanted * tl.load(norms + token, mask=inside, other=0.0)
        best = first_largest(rank, free, token)
        value = tl.sum(tl.where(token == best, rank, 0.0), 0)
        tl.store(chosen + crop * num_keep + step, best.to(tl.int64))
        tl.store(values + crop * num_keep + step, value)
        free = free & (token != best)
        if OBJECTIVE == "coverage":
            line = pairs + tl.cast(best, tl.int64) * stride_pair
            running = tl.maximum(running, tl.load(line + token, mask=inside, other=0.0))
        else:
            tl.debug_barrier()  # all have read the products before they change
            store_products(
                features, products, best, stride_token, num_tokens, width, BLOCK_N, BLOCK_D
            )
            tl.debug_barrier()  # and the factor's row of the step before is written
            own = tl.load(norms + best)
            if OBJECTIVE == "dpp":
                own *= tl.load(weights + best)
            row = tl.load(products + token, mask=inside, other=0.0) * scale * own
        if OBJECTIVE == "max_min":
            to_best = cosine_distance(row)
            rank = tl.where(step == 0, to_best, tl.minimum(rank, to_best))
        elif OBJECTIVE == "dpp":
            for earlier in range(step):
                line = factor + earlier * num_tokens
                row -= tl.load(line + best) * tl.load(line + token, mask=inside, other=0.0)
            # A token in the span of those before it brings nothing, and removes nothing.
            root = tl.sqrt(tl.where(value > 0, value, 1.0))
            row = tl.where(value > 0, row / root, 0.0)
            tl.store(factor + step * num_tokens + token, row, mask=inside)
            rank -= row * row
            rank = tl.where(rank <= wanted * wanted * ROUNDING, 0.0, rank)
        elif OBJECTIVE == "mmr":
            running = tl.maximum(running, row)
            fresh = wanted - (1 - mmr_lambda) * running
            rank = tl.where((step + 1) % parallel_k == 0, fresh, rank)


def launch(
    features: Tensor,
    weights: Tensor | None,
    objective: str,
    num_keep: int,
    mmr_lambda: float,
    parallel_k: int,
) -> tuple[Tensor, Tensor]:
    """[B, N, D] and [B, N] -> ([B, K] int64 in the order chosen, [B, K] float32 ranks)."""
    batch, num_tokens, width = features.shape
    features = unit_stride(features)
    order = features.new_empty(batch, num_keep, dtype=torch.int64)
    values = features.new_empty(batch, num_keep, dtype=torch.float32)
    if weights is None:
        weights = torch.ones_like(features[:, :, 0], dtype=torch.float32)
    if not batch or not num_keep:
        return order, values
    rows_of_factor = num_keep if objective == "dpp" else 0
    at_once, pairs_per_token = batch, 0
    if objective == "coverage":  # as many crops' pairs are stored as programs run at a time
        at_once = min(batch, num_programs(features.device))
        pairs_per_token = triton.cdiv(num_tokens, 16) * 16  # rows begin where vectors do
    weights = weights.float().contiguous()
    norms = values.new_empty(at_once, num_tokens)
    products = torch.empty_like(norms)
    factor = values.new_empty(at_once, rows_of_factor, num_tokens)
    pairs = values.new_empty(at_once, num_tokens, pairs_per_token)
    for start in range(0, batch, at_once):
        some = slice(start, start + at_once)
        _greedy_order_fwd_kernel[(len(order[some]),)](
            features[some],
            weights[some],
            norms,
            products,
            factor,
            pairs,
            order[some],
            values[some],
            features.stride(0),
            features.stride(1),
            pairs_per_token,
            num_tokens,
            num_keep,
            width,
            mmr_lambda,
            parallel_k,
            OBJECTIVE=objective,
            PADDED=padded(num_tokens),
            UPCAST=interpreting(),
            **launch_config(f"{objective}_order_fwd", features),
        )
    return order, values
