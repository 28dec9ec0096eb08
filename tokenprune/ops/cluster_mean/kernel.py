"""Means on the GPU: the members of a cluster lie side by side in `order`, and are read once."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenprune.ops.common.launch import launch_config, unit_stride


@triton.jit
def _cluster_mean_fwd_kernel(
    features,  # [B, N, D], strided
    order,  # [B, N] int32
    starts,  # [B, N] int32
    counts,  # [B, N] int32
    keep_indices,  # [B, K] or packed [T] int64
    crops,  # [T] int64: each slot's crop (RAGGED only)
    weights,  # [B, N] float32: what each token counts (WEIGHTED only)
    totals,  # [B, K] float32: what a slot's members count together (WEIGHTED only)
    means,  # [B, K, D] or [T, D]
    stride_batch,
    stride_token,
    num_tokens,
    num_keep,
    width,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    RAGGED: tl.constexpr,
    WEIGHTED: tl.constexpr,
):
    slot = tl.program_id(0).to(tl.int64)
    crop = tl.load(crops + slot) if RAGGED else slot // num_keep
    channel = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    present = channel < width
    cell = crop * num_tokens + tl.load(keep_indices + slot)
    count = tl.load(counts + cell)
    start = tl.load(starts + cell, mask=count > 0, other=0)
    total = tl.zeros((BLOCK_D,), tl.float32)
    counted = tl.zeros((), tl.float32)  # what all members count together
    for first in range(0, count, BLOCK_M):
        member = first + tl.arange(0, BLOCK_M)
        token = tl.load(order + crop * num_tokens + start + member, mask=member < count, other=0)
        tile = tl.load(  # [BLOCK_M, BLOCK_D]
            features
            + crop * stride_batch
            + token[:, None].to(tl.int64) * stride_token
            + channel[None, :],
            mask=(member < count)[:, None] & present[None, :],
            other=0.0,
        )
        tile = tile.to(tl.float32)
        if WEIGHTED:
            weight = tl.load(weights + crop * num_tokens + token, mask=member < count, other=0.0)
            tile *= weight[:, None]
            counted += tl.sum(weight, 0)
        total += tl.sum(tile, 0)
    if WEIGHTED:
        tl.store(totals + slot, counted, mask=tl.program_id(1) == 0)
        total = total / tl.where(counted > 0, counted, 1.0)
    else:
        total = total / tl.maximum(count, 1).to(tl.float32)
    tl.store(means + slot * width + channel, total.to(means.dtype.element_ty), mask=present)


@triton.jit
def _cluster_mean_bwd_kernel(
    roots,  # [B, N] int64
    slots,  # [B, N] int64: the kept slot of each root over all crops, -1 where it is not kept
    shares,  # [T, D] float32: what each member of a slot receives
    weights,  # [B, N] float32: and how many times (WEIGHTED only)
    grad_features,  # [B, N, D]
    num_tokens,
    width,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WEIGHTED: tl.constexpr,
):
    crop = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    channel = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = token < num_tokens
    stored = inside[:, None] & (channel < width)[None, :]
    root = tl.load(roots + crop * num_tokens + token, mask=inside, other=0)
    slot = tl.load(slots + crop * num_tokens + root, mask=inside, other=-1)
    share = tl.load(
        shares + slot[:, None] * width + channel[None, :],
        mask=stored & (slot >= 0)[:, None],
        other=0.0,
    )
    if WEIGHTED:
        weight = tl.load(weights + crop * num_tokens + token, mask=inside, other=0.0)
        share *= weight[:, None]
    tl.store(
        grad_features + (crop * num_tokens + token[:, None]) * width + channel[None, :],
        share.to(grad_features.dtype.element_ty),
        mask=stored,
    )


def launch(
    features: Tensor, roots: Tensor, keep_indices: Tensor, weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """[B, N, D], [B, N] roots and [B, K] kept ones -> [B, K, D] means, [B, K] what they count."""
    roots, keep_indices = roots.contiguous(), keep_indices.contiguous()
    counts = torch.zeros_like(roots).scatter_add_(1, roots, torch.ones_like(roots))
    starts = counts.cumsum(1) - counts
    members = Members(roots.argsort(dim=1, stable=True).int(), starts.int(), counts.int())
    means = features.new_empty(*keep_indices.shape, features.shape[2])
    totals = counts.gather(1, keep_indices).float()
    if weights is not None:
        weights = weights.float().contiguous()
    launch_mean(features, members, keep_indices, means, weights=weights, totals=totals)
    return means, totals


class Members(NamedTuple):
    """The tokens of each cluster, side by side.

    Attributes:
        order: [B, N] int32, the tokens sorted by root, then by token.
        starts: [B, N] int32, by root: where its members start in `order`.
        counts: [B, N] int32, by root: how many members it has.
    """

    order: Tensor
    starts: Tensor
    counts: Tensor


def launch_mean(
    features: Tensor,
    members: Members,
    keep_indices: Tensor,
    means: Tensor,
    *,
    crops: Tensor | None = None,
    weights: Tensor | None = None,
    totals: Tensor | None = None,
) -> None:
    """Writes the means of the kept clusters.

    Args:
        features: [B, N, D].
        members: of all clusters.
        keep_indices: [B, K] int64, or packed [T].
        means: [B, K, D] or [T, D], written to.
        crops: [T] int64, each packed slot's crop; None where slots are [B, K].
        weights: [B, N] float32, what each token counts; None where all count 1.
        totals: [B, K] float32, what members count together; written to if weights are given.
    """
    num_tokens, width = features.shape[1:]
    features = unit_stride(features)
    if not keep_indices.numel():
        return
    config = launch_config("cluster_mean_fwd", features)
    _cluster_mean_fwd_kernel[(keep_indices.numel(), triton.cdiv(width, config["BLOCK_D"]))](
        features,
        *members,
        keep_indices,
        crops,
        weights,
        totals,
        means,
        features.stride(0),
        features.stride(1),
        num_tokens,
        keep_indices.shape[-1],
        width,
        RAGGED=crops is not None,
        WEIGHTED=weights is not None,
        **config,
    )


def launch_mean_bwd(
    roots: Tensor, slots: Tensor, shares: Tensor, weights: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """What each member of a kept cluster receives -> [B, N, D] gradient.

    Args:
        roots: [B, N] int64.
        slots: [B, N] int64, the slot of each root in `shares`, -1 where it is not kept.
        shares: [T, D] float32.
        weights: [B, N], how many shares each member receives; None where all receive one.
    """
    batch, num_tokens = roots.shape
    width = shares.shape[1]
    grad_features = shares.new_empty(batch, num_tokens, width, dtype=dtype)
    config = launch_config("cluster_mean_bwd", shares)
    if weights is not None:
        weights = weights.float().contiguous()
    if batch:
        grid = (
            batch,
            triton.cdiv(num_tokens, config["BLOCK_N"]),
            triton.cdiv(width, config["BLOCK_D"]),
        )
        _cluster_mean_bwd_kernel[grid](
            roots.contiguous(),
            slots.contiguous(),
            shares.contiguous(),
            weights,
            grad_features,
            num_tokens,
            width,
            WEIGHTED=weights is not None,
            **config,
        )
    return grad_features
