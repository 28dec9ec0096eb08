"""One program per head streams the keys past the class token's query, twice."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tokenprune.ops.common.launch import launch_config, unit_stride


@triton.jit
def _cls_attention_fwd_kernel(
    q,  # [B, H, N, d], strided
    k,  # [B, H, N, d], strided
    weights,  # [B, H, N] float32
    stride_qb,
    stride_qh,
    stride_kb,
    stride_kh,
    stride_kn,
    heads,
    num_tokens,
    width,
    scale,
    BLOCK_N: tl.constexpr,
    PADDED_D: tl.constexpr,
):
    batch = (tl.program_id(0) // heads).to(tl.int64)
    head = (tl.program_id(0) % heads).to(tl.int64)
    channel = tl.arange(0, PADDED_D)
    present = channel < width
    query = tl.load(q + batch * stride_qb + head * stride_qh + channel, mask=present, other=0.0)
    query = query.to(tl.float32) * scale
    k += batch * stride_kb + head * stride_kh
    weights += tl.program_id(0).to(tl.int64) * num_tokens

    largest = tl.full((BLOCK_N,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_N,), tl.float32)  # of each lane, relative to its own largest
    for start in range(0, num_tokens, BLOCK_N):
        token = start + tl.arange(0, BLOCK_N)
        inside = token < num_tokens
        keys = tl.load(  # [BLOCK_N, PADDED_D]
            k + token[:, None].to(tl.int64) * stride_kn + channel[None, :],
            mask=inside[:, None] & present[None, :],
            other=0.0,
        )
        logit = tl.sum(keys.to(tl.float32) * query[None, :], 1)
        tl.store(weights + token, logit, mask=inside)
        logit = tl.where(inside, logit, -float("inf"))
        new = tl.maximum(largest, logit)
        shift = tl.where(new == -float("inf"), 0.0, new)
        total = total * tl.exp(largest - shift) + tl.exp(logit - shift)
        largest = new
    highest = tl.max(largest, 0)
    total = tl.sum(total * tl.exp(largest - highest), 0)
    tl.debug_barrier()
    for start in range(0, num_tokens, BLOCK_N):
        token = start + tl.arange(0, BLOCK_N)
        logit = tl.load(weights + token, mask=token < num_tokens, other=0.0)
        tl.store(weights + token, tl.exp(logit - highest) / total, mask=token < num_tokens)


def launch(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """[B, H, N, d] queries and keys -> [B, H, N] weights of the first query."""
    q, k = unit_stride(q), unit_stride(k)
    batch, heads, num_tokens, width = k.shape
    weights = k.new_empty(batch, heads, num_tokens, dtype=torch.float32)
    if batch * heads:
        _cls_attention_fwd_kernel[(batch * heads,)](
            q,
            k,
            weights,
            *q.stride()[:2],
            *k.stride()[:3],
            heads,
            num_tokens,
            width,
            scale,
            PADDED_D=max(16, triton.next_power_of_2(width)),
            **launch_config("cls_attention_fwd", k),
        )
    return weights
