"""Determinantal selection on the GPU: one program per crop, the Cholesky factor beside it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenprune.ops.background_merge.kernel import padded
from tokenprune.ops.common.launch import launch_config, unit_stride
from tokenprune.ops.max_min_select.kernel import (
    ROUNDING,
    first_largest,
    store_inverse_norms,
    store_products,
)


@triton.jit
def _dpp_order_fwd_kernel(
    features,  # [B, N, D], strided
    quality,  # [B, N] float32
    norms,  # [B, N] float32 scratch: inverse norms
    products,  # [B, N] float32 scratch
    factor,  # [B, K, N] float32 scratch: rows of the Cholesky factor
    chosen,  # [B, K] int64
    gains,  # [B, K] float32
    stride_batch,
    stride_token,
    num_tokens,
    num_keep,
    width,
    PADDED: tl.constexpr,  # power of two, at least N
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    crop = tl.program_id(0).to(tl.int64)
    features += crop * stride_batch
    norms += crop * num_tokens
    products += crop * num_tokens
    quality += crop * num_tokens
    factor += crop * num_keep * num_tokens
    store_inverse_norms(features, norms, stride_token, num_tokens, width, BLOCK_N, BLOCK_D)
    tl.debug_barrier()  # norms cross the tiles above

    token = tl.arange(0, PADDED)
    inside = token < num_tokens
    wanted = tl.load(quality + token, mask=inside, other=0.0)
    scale = wanted * tl.load(norms + token, mask=inside, other=0.0)
    nothing = ROUNDING * wanted * wanted
    gain = wanted * wanted
    free = inside
    for step in range(num_keep):
        best = first_largest(tl.where(free, gain, -float("inf")), token)
        pivot = tl.sum(tl.where(token == best, gain, 0.0), 0)
        tl.store(chosen + crop * num_keep + step, best.to(tl.int64))
        tl.store(gains + crop * num_keep + step, pivot)
        free = free & (token != best)
        tl.debug_barrier()  # all have read the products before they change
        store_products(features, products, best, stride_token, num_tokens, width, BLOCK_N, BLOCK_D)
        tl.debug_barrier()  # and the factor's row of the step before is written
        row = tl.load(products + token, mask=inside, other=0.0)
        row = row * scale * (tl.load(norms + best) * tl.load(quality + best))
        for earlier in range(step):
            line = factor + earlier * num_tokens
            row -= tl.load(line + best) * tl.load(line + token, mask=inside, other=0.0)
        # A token in the span of those before it brings nothing, and removes nothing.
        root = tl.sqrt(tl.where(pivot > 0, pivot, 1.0))
        row = tl.where(pivot > 0, row / root, 0.0)
        tl.store(factor + step * num_tokens + token, row, mask=inside)
        gain -= row * row
        gain = tl.where(gain <= nothing, 0.0, gain)


def launch(features: Tensor, quality: Tensor, num_keep: int) -> tuple[Tensor, Tensor]:
    """[B, N, D] and [B, N] -> ([B, K] int64 in the order chosen, [B, K] float32 factors)."""
    batch, num_tokens, width = features.shape
    features = unit_stride(features)
    norms = features.new_empty(batch, num_tokens, dtype=torch.float32)
    order = features.new_empty(batch, num_keep, dtype=torch.int64)
    gains = features.new_empty(batch, num_keep, dtype=torch.float32)
    if batch and num_keep:
        _dpp_order_fwd_kernel[(batch,)](
            features,
            quality.float().contiguous(),
            norms,
            torch.empty_like(norms),
            norms.new_empty(batch, num_keep, num_tokens),
            order,
            gains,
            features.stride(0),
            features.stride(1),
            num_tokens,
            num_keep,
            width,
            PADDED=padded(num_tokens),
            **launch_config("dpp_order_fwd", features),
        )
    return order, gains
